"""Make DeepSpeed's JSON configuration from the recipe, or complete and check the user's own JSON file.

``auto`` values are filled by DeepSpeed's published rules. Missing keys are filled from the recipe where the recipe
decides them. Values that contradict the recipe are refused, and so are keys that DeepSpeed would ignore. No process
group is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import Problem
from ...models.json_file import read_json
from ..plan import Dtype, Plan
from ..recipe_values import RecipeValues
from . import json_keys
from .json_fill import JsonFiller, offload_device, zero_block
from .library import import_deepspeed, installed
from .optimizer_rules import optimizer_and_scheduler
from .options import LEAST_BUCKET, DeepSpeedOptions, offload_problems

KEPT_AUTO = {
    "data_types.keep_in_fp32_modules",  # DeepSpeed itself accepts auto here
    "scheduler.params.total_num_steps",  # filled when epochs have been converted into steps
    "scheduler.params.warmup_num_steps",
}
"""Keys that may still be ``auto`` after filling."""
NOT_INSTALLED = Problem("plan", "needs deepspeed, which is not installed", "pip install 'trireme-train[deepspeed]'")


def deepspeed_config(plan: Plan, recipe: RecipeValues, data_ranks: int) -> tuple[dict[str, Any], list[Problem]]:
    """The JSON for ``deepspeed.initialize``, and its problems.

    Args:
        data_ranks: number of ranks that see different samples.
    """
    if not installed():
        return {}, [NOT_INSTALLED]
    import_deepspeed()
    problems: list[Problem] = []
    if isinstance(plan.deepspeed, str):
        read, problems = read_file(plan.deepspeed)
        if read is None:
            return {}, problems
        config = read
        json_keys.rename(config)
        problems = json_keys.unknown_keys(config, json_keys.known_keys()) + json_keys.elsewhere(config)
    else:
        config = typed_json(plan.deepspeed, plan.precision)
    filler = JsonFiller(config, json_keys.FILE if isinstance(plan.deepspeed, str) else "plan.deepspeed.")
    filler.problems += problems
    _batch(filler, recipe, data_ranks)
    _precision(filler, plan.precision)
    _hidden_size(filler, recipe.hidden_size)
    optimizer_and_scheduler(filler, recipe)
    _refuse_unsupported_switches(filler)
    if isinstance(plan.deepspeed, str):
        _offload(filler)
        _refuse_unfilled(filler, config)
        _types(filler)
    return config, _first_of_each_key(filler.problems)


def read_file(path: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Content of a JSON file. Duplicate keys, which JSON readers silently drop, are refused."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ValueError(f"holds the key {doubled[0]!r} twice")
        return dict(pairs)

    def refused(why: str, fix: str) -> tuple[None, list[Problem]]:
        return None, [Problem("plan.deepspeed", why, fix, path)]

    try:
        config = read_json(Path(path), object_pairs_hook=unique)
    except FileNotFoundError:
        return refused("does not exist", "give the path of a DeepSpeed JSON file, relative to the current folder")
    except OSError as error:
        return refused(f"cannot be read: {error.strerror}", "give the path of a DeepSpeed JSON file")
    except json.JSONDecodeError as error:
        return refused(f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}", "correct it there")
    except ValueError as error:
        return refused(str(error), "keep one of the two" if "twice" in str(error) else "correct it there")
    if not isinstance(config, dict):
        return refused("must hold one JSON object", "write {...}")
    return config, []


def typed_json(options: DeepSpeedOptions, precision: Dtype) -> dict[str, Any]:
    """The typed options under DeepSpeed's names; values that the recipe decides are still ``auto``."""
    stage = options.stage
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": options.reduce_bucket_size,
        "allgather_bucket_size": options.allgather_bucket_size,
        "contiguous_gradients": options.contiguous_gradients,
        "reduce_scatter": options.reduce_scatter,
        "use_multi_rank_bucket_allreduce": options.use_multi_rank_bucket_allreduce,
        "allgather_partitions": options.allgather_partitions,
        "round_robin_gradients": options.round_robin_gradients,
    }
    if options.overlap_comm != "auto":
        zero["overlap_comm"] = options.overlap_comm
    for name in ("offload_optimizer", "offload_param"):
        offload = asdict(getattr(options, name))
        if offload["device"] != "none":
            zero[name] = {key: value for key, value in offload.items() if value is not None}
    if stage == 3:
        names = ("prefetch_bucket_size", "param_persistence_threshold", "max_live_parameters", "max_reuse_distance")
        zero |= {f"stage3_{name}": getattr(options, f"stage3_{name}") for name in names}
        zero["sub_group_size"] = options.sub_group_size
    config: dict[str, Any] = {"zero_optimization": zero}
    if precision == "fp16":
        config["fp16"] = {"enabled": True, **asdict(options.fp16)}
    accumulated = options.grad_accum_dtype
    if accumulated == "auto":
        accumulated = None if stage == 0 else "fp32"
    if precision != "fp32" and accumulated is not None:
        config["data_types"] = {"grad_accum_dtype": accumulated}
    if options.communication_data_type is not None:
        config["communication_data_type"] = options.communication_data_type
    if "nvme" in (options.offload_optimizer.device, options.offload_param.device):
        config["aio"] = asdict(options.aio)
    if options.use_node_local_storage:
        config["checkpoint"] = {"use_node_local_storage": True}
    config["zero_allow_untested_optimizer"] = options.zero_allow_untested_optimizer
    config["zero_force_ds_cpu_optimizer"] = options.zero_force_ds_cpu_optimizer
    return config


def _batch(filler: JsonFiller, recipe: RecipeValues, data_ranks: int) -> None:
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    batch, micro, steps = (filler.config.get(name, "auto") for name in names)
    numbers = all(isinstance(value, int) for value in (batch, micro, steps))
    if numbers and batch != micro * steps * data_ranks:
        product = f"{micro} x {steps} x {data_ranks} = {micro * steps * data_ranks}"
        why = f"is not {names[1]} x {names[2]} x data ranks = {product}"
        filler.refuse(names[0], why, 'write "auto" for all three', batch)
    else:
        accumulation = max(recipe.global_batch_size // (recipe.micro_batch_size * data_ranks), 1)
        quotient = f"trainer.global_batch_size / (trainer.micro_batch_size x {data_ranks} data ranks)"
        filler.set(names[0], recipe.global_batch_size, "trainer.global_batch_size")
        filler.set(names[1], recipe.micro_batch_size, "trainer.micro_batch_size")
        filler.set(names[2], accumulation, quotient)
    filler.set("gradient_clipping", recipe.max_grad_norm or 0.0, "trainer.max_grad_norm", str(recipe.max_grad_norm))


def _precision(filler: JsonFiller, precision: Dtype) -> None:
    half = "bfloat16" if "bfloat16" in filler.config else "bf16"
    for block, dtype in (("fp16", "fp16"), (half, "bf16")):
        if block in filler.config or precision == dtype:
            filler.set(f"{block}.enabled", precision == dtype, "plan.precision", precision)
    autocast = filler.config.get("torch_autocast")
    if isinstance(autocast, dict) and autocast.get("enabled"):
        filler.refuse(
            "torch_autocast.enabled",
            "would replace plan.precision, which switches bf16 or fp16 on",
            "remove the block",
            autocast["enabled"],
        )


def _hidden_size(filler: JsonFiller, hidden: int) -> None:
    """Fill ``auto`` sizes from the hidden size, by the rules of transformers' DeepSpeed integration. By these a small
    model would send its gradients in very many messages, so buckets have a least size."""
    filler.auto("zero_optimization.reduce_bucket_size", max(hidden * hidden, LEAST_BUCKET))
    filler.auto("zero_optimization.stage3_prefetch_bucket_size", int(0.9 * hidden * hidden))
    filler.auto("zero_optimization.stage3_param_persistence_threshold", 10 * hidden)


def _refuse_unsupported_switches(filler: JsonFiller) -> None:
    """Refuse values of switches that would change the loss, the gradient norm or the step."""
    reasons = {
        "gradient_allreduce_op": ("mean", "the loss is normalised for a mean over ranks"),
        "managed_gradient_accumulation": (True, "micro-batches are counted by the engine"),
        "zero_optimization.compute_grad_norm": (True, "the gradient norm is part of every training line"),
        "zero_optimization.zenflow": (None, "it steps some weights later than others"),
        "zero_optimization.elastic_checkpoint": (False, "trireme writes checkpoints itself"),
    }
    for path, (wanted, why) in reasons.items():
        value: Any = filler.config
        for key in path.split("."):
            value = value.get(key, wanted) if isinstance(value, dict) else wanted
        if value != wanted:
            filler.refuse(path, f"cannot be used with trireme: {why}", "remove it", value)


def _offload(filler: JsonFiller) -> None:
    """Refuse contradictions inside ``zero_optimization`` of a user's file; typed options check themselves."""
    zero = zero_block(filler.config)
    stage = zero.get("stage", 0)
    if not isinstance(stage, int) or isinstance(stage, bool):
        return
    devices = [offload_device(filler.config, name) for name in ("offload_optimizer", "offload_param")]
    block = zero.get("offload_optimizer")
    ratio = block.get("ratio", 1.0) if isinstance(block, dict) else 1.0
    for text in offload_problems(stage, devices[0], devices[1], ratio):
        head, _, fix = text.partition("; ")
        where, _, why = head.partition(" ")
        field, _, value = where.partition("=")
        filler.refuse(f"zero_optimization.{field}", why, fix, value)
    for name, device in zip(("offload_optimizer", "offload_param"), devices, strict=True):
        if device == "nvme" and not zero[name].get("nvme_path"):
            filler.refuse(
                f"zero_optimization.{name}.nvme_path", "is needed by device nvme", "give a folder on a fast disk"
            )


def _refuse_unfilled(filler: JsonFiller, block: dict[str, Any], path: str = "") -> None:
    """Refuse each ``auto`` that no rule has filled, since DeepSpeed would take its default, or fail."""
    for key, value in block.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and not any(problem.field == json_keys.FILE + where for problem in filler.problems):
            _refuse_unfilled(filler, value, f"{where}.")
        elif value == "auto" and where not in KEPT_AUTO:
            filler.refuse(where, "has no rule for auto", "write a value, or remove the key", value)


def _types(filler: JsonFiller) -> None:
    """Refuse wrong types and ranges, which DeepSpeed's own pydantic models find."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    models = {
        "zero_optimization": DeepSpeedZeroConfig,
        "fp16": DeepSpeedFP16Config,
        "bf16": DeepSpeedBF16Config,
        "bfloat16": DeepSpeedBF16Config,
    }
    for name, model in models.items():
        block = filler.config.get(name)
        if not isinstance(block, dict):
            continue
        try:
            model(**block)
        except ValidationError as error:
            for detail in error.errors():
                if detail["type"] != "extra_forbidden":  # unknown keys are reported with the nearest known one
                    where = ".".join(str(part) for part in (name, *detail["loc"]))
                    filler.refuse(where, f"is refused by DeepSpeed: {detail['msg']}", "", detail["input"])
        except (AssertionError, ValueError) as error:
            filler.refuse(name, f"is refused by DeepSpeed: {error}", "")


def _first_of_each_key(problems: list[Problem]) -> list[Problem]:
    """Keep the first problem of each key, so that a wrong value is not reported again as a contradiction."""
    seen: dict[str, Problem] = {}
    for problem in problems:
        seen.setdefault(problem.field, problem)
    return list(seen.values())
