"""List the keys that DeepSpeed's JSON configuration may contain, and report keys that are unknown or that trireme
replaces by its own features. Unknown arguments of optimizers and schedulers are reported too.

DeepSpeed silently ignores unknown top-level keys, so trireme checks them by these lists. Keys of blocks that DeepSpeed
reads through pydantic models are taken from these models in the installed package. All other keys are listed here, as
in DeepSpeed's sources.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from ...errors import Problem

Tree = dict[str, Any]
"""Each key with the tree of its block, or with None if its value may have any form."""

FILE = "plan.deepspeed:"
"""Prefix of the field in problems of the user's own JSON file."""

SCALARS = [
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "disable_allgather",
    "disable_python_gc",
    "communication_data_type",
    "seq_parallel_communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "gradient_allreduce_op",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "dataloader_drop_last",
    "log_level",
    "vocabulary_size",
    "managed_gradient_accumulation",
    "use_data_before_expert_parallelism",
    "sequence_parallel_size",
    "data_parallel_size",
]
BLOCKS: dict[str, list[str]] = {
    "aio": ["block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"],
    "activation_checkpointing": [
        "partition_activations",
        "cpu_checkpointing",
        "contiguous_memory_optimization",
        "number_checkpoints",
        "synchronize_checkpoint_boundary",
        "profile",
    ],
    "flops_profiler": [
        "enabled",
        "recompute_fwd_factor",
        "profile_step",
        "module_depth",
        "top_modules",
        "detailed",
        "output_file",
    ],
    "data_types": ["grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"],
    "torch_autocast": ["enabled", "dtype", "lower_precision_safe_modules"],
    "optimizer": ["type", "params", "legacy_fusion"],
    "scheduler": ["type", "params"],
}
CHECKPOINT = ["tag_validation", "load_universal", "use_node_local_storage", "parallel_write", "serialization", "writer"]
RENAMED = {"aio.thread_count": "intra_op_parallelism"}
"""Keys of published examples that the installed DeepSpeed reads under another name."""
ELSEWHERE = {
    "tensor_parallel": ("is tensor parallelism of DeepSpeed", "remove it; plan=tp splits matrices"),
    "pipeline": ("configures DeepSpeed's own pipeline engine", "remove it; plan=pp_1f1b uses pipeline stages"),
    "hybrid_engine": ("belongs to DeepSpeed-Chat", "remove it"),
    "expert_parallel": ("is expert parallelism of DeepSpeed", "remove it"),
    "data_efficiency": ("changes the samples and their order", "remove it; data and collator choose the samples"),
    "autotuning": (
        "starts runs by itself",
        "remove it; `trireme batch-size` finds the micro-batch",
    ),
    "compile": ("compiles DeepSpeed's graph", "remove it; plan.compile compiles blocks of other plans"),
    "weight_quantization": ("is for inference", "remove it"),
    "sequence_parallel_size": ("splits sequences over ranks", "remove it; plan=tp_sp does so"),
    "data_parallel_size": ("belongs to sequence_parallel_size", "remove it; the plan sets the degrees"),
    "datastates_ckpt": ("is a checkpoint engine of DeepSpeed", "remove it; checkpoint configures how trireme saves"),
    "activation_checkpointing": (
        "has no effect on models of transformers",
        "remove it; plan.recompute=full recomputes activations",
    ),
}
"""Blocks of DeepSpeed that would have no effect, or contradict the recipe: (reason, fix) for each."""


def known_keys() -> Tree:
    """Every key of the JSON. Imports deepspeed."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    tree: Tree = dict.fromkeys([*SCALARS, *ELSEWHERE])
    tree |= {name: dict.fromkeys(keys) for name, keys in BLOCKS.items()}
    tree |= model_tree(DeepSpeedMonitorConfig)
    tree["zero_optimization"] = model_tree(DeepSpeedZeroConfig)
    tree["fp16"] = model_tree(DeepSpeedFP16Config)
    tree["bf16"] = tree["bfloat16"] = model_tree(DeepSpeedBF16Config)
    tree["comms_logger"] = model_tree(CommsLoggerConfig)
    tree["timers"] = {"throughput": model_tree(DeepSpeedThroughputTimerConfig)}
    tree["checkpoint"] = dict.fromkeys(CHECKPOINT) | {"parallel_write": {"pipeline_stage": None}}
    return tree


def model_tree(model: Any) -> Tree:
    """Keys of one of DeepSpeed's pydantic models: published aliases, and field names, which it accepts too."""
    tree: Tree = {}
    for name, info in model.model_fields.items():
        tree[info.alias or name] = tree[name] = _nested(info.annotation)
    return tree


def _nested(annotation: Any) -> Tree | None:
    for hint in (annotation, *get_args(annotation)):
        if inspect.isclass(hint) and hasattr(hint, "model_fields"):
            return model_tree(hint)
    return None


def unknown_keys(block: dict[str, Any], tree: Tree, path: str = "", whole: Tree | None = None) -> list[Problem]:
    """Problems of keys that DeepSpeed does not know. The fix is the block where it knows the key, or a similar key.

    Args:
        tree: keys that DeepSpeed knows in this block.
        path: path of the block, ending with a dot; empty at the top level.
        whole: keys of the whole file; None if ``tree`` is the top level.
    """
    problems = []
    removed = _removed(path)
    for key, value in block.items():
        where = f"{path}{key}"
        if key in removed:
            problems.append(Problem(FILE + where, f"was removed from DeepSpeed: {removed[key]}", "remove it"))
        elif key not in tree:
            place = f"in {path[:-1]}" if path else "at the top level"
            shown = None if isinstance(value, dict) else value
            fix = moved(key, path, whole or tree) or nearest(key, tree)
            problems.append(Problem(FILE + where, f"is not a key of DeepSpeed {place}", fix, shown))
        elif isinstance(tree[key], dict) and isinstance(value, dict):
            problems += unknown_keys(value, tree[key], f"{where}.", whole or tree)
        elif isinstance(tree[key], dict) and value is not None:
            problems.append(Problem(FILE + where, "must be a block of keys", f'write "{key}": {{...}}', value))
    return problems


def moved(key: str, path: str, tree: Tree) -> str:
    """The fix for a key that DeepSpeed knows in exactly one other block; empty for other keys."""
    places = [place for place in _places(key, tree) if place != path]
    if len(places) != 1:
        return ""
    return f'move it into "{places[0][:-1]}"' if places[0] else "move it to the top level of the file"


def _places(key: str, tree: Tree, path: str = "") -> Iterator[str]:
    """Paths of the blocks that have ``key``, each ending with a dot; the empty path is the top level."""
    if key in tree:
        yield path
    for name, inner in tree.items():
        if isinstance(inner, dict) and name != "bfloat16":  # skips the older name of bf16
            yield from _places(key, inner, f"{path}{name}.")


def elsewhere(config: dict[str, Any]) -> list[Problem]:
    """Problems of blocks that trireme replaces; one with ``"enabled": false`` is accepted."""
    return [
        Problem(f"{FILE}{key}", why, fix)
        for key, (why, fix) in ELSEWHERE.items()
        if key in config and not (isinstance(config[key], dict) and config[key].get("enabled") is False)
    ]


def unknown_arguments(given: dict[str, Any], taken: Iterable[str], path: str, owner: str) -> list[Problem]:
    """Problems of arguments that a class does not take."""
    taken = list(taken)
    problems = []
    for key, value in given.items():
        if key not in taken:
            fix = "write gradient_clipping at the top level" if key == "max_grad_norm" else nearest(key, taken)
            problems.append(Problem(f"{FILE}{path}.{key}", f"is not an argument of {owner}", fix, value))
    return problems


def nearest(name: str, known: Iterable[str]) -> str:
    """The fix for an unknown name: the most similar known one, or a list of all if they are few."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {found[0]}?" if found else f"known here: {', '.join(known)}" if len(known) <= 40 else ""


def rename(config: dict[str, Any]) -> None:
    """Give keys of older examples their present names, in place."""
    for old, new in RENAMED.items():
        block, key = old.split(".")
        if isinstance(config.get(block), dict) and key in config[block]:
            config[block].setdefault(new, config[block].pop(key))


def _removed(path: str) -> dict[str, str]:
    """DeepSpeed's explanations of the keys that it has removed from a block."""
    from deepspeed.runtime import config

    if path == "":
        return getattr(config, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", {})
    return getattr(config, "_REMOVED_ZERO_CONFIG_KEYS", {}) if path == "zero_optimization." else {}
