"""Every private attribute of another library that trireme uses is listed here with its reason, and exists.

A new version of a library may drop or rename a name that begins with an underscore, without notice. Before a library is
upgraded, this list shows which names to look at. If a name is gone, this test fails at once, rather than a run in its
middle.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest
import trireme

ROOT = Path(trireme.__file__).parent
FOLDERS = ("models", "parallel", "trainer", "launch", "configs")
BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}
MODULE = "torch.nn:Module."
AGENT = "torch.distributed.elastic.agent.server.api:SimpleElasticAgent."
ATEN = "torch:ops.aten."
HANDLER = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler:SubprocessHandler."
REMOVED = "deepspeed.runtime.config:"
ZERO3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3."

RELIED_ON: dict[str, tuple[str, str]] = {
    # -- Python --
    "_actions": ("argparse:_ActionsContainer._actions", "an argument parser has no public list of its options"),
    "_Unpickler": ("pickle:_Unpickler", "the unpickler in Python: only its steps can be checked one by one"),
    "_current_frames": ("sys:_current_frames", "where every thread of a stalled rank is (documented by Python)"),
    "_exit": ("os:_exit", "a failed rank ends without destructors that wait for its peers (documented by Python)"),
    "_run_exitfuncs": ("atexit:_run_exitfuncs", "what was registered for the end runs before such an end, too"),
    # -- Hydra --
    "_internal": ("hydra._internal", "its loader has no public hook between reading files and merging them"),
    "_compose_config_from_defaults_list": (
        "hydra._internal.config_loader_impl:ConfigLoaderImpl._compose_config_from_defaults_list",
        "the step that merges files, where arguments of a replaced component go",
    ),
    "_create_defaults_list": (
        "hydra._internal.config_repository:ConfigRepository._create_defaults_list",
        "the step that reads a list of defaults, where overrides are put last",
    ),
    "_create_interpolation_map": (
        "hydra._internal.defaults_list:_create_interpolation_map",
        "a table of all choices, made for every list of defaults: left out where no entry reads it",
    ),
    # -- transformers: chat templates --
    "_compile_jinja_template": (
        "transformers.utils.chat_template_utils:_compile_jinja_template",
        "templates get the filters and globals of transformers, and a day that does not change",
    ),
    # -- torch: modules and tensors --
    "_buffers": (f"{MODULE}_buffers", "a buffer is replaced under its name; setattr would register a parameter"),
    "_modules": (f"{MODULE}_modules", "a stand-in of a parent holds one filled child, the others stay as they are"),
    "_parameters": (f"{MODULE}_parameters", "a parameter is replaced in place, whatever a module's setattr does"),
    "_foreach_lerp_": ("torch:_foreach_lerp_", "one kernel for all averaged weights"),
    "_foreach_mul_": ("torch:_foreach_mul_", "one kernel to scale all gradients, as torch's own clipping uses"),
    "_foreach_norm": ("torch:_foreach_norm", "one kernel for the norms of all gradients, as torch's own clipping uses"),
    "_is_view": ("torch:Tensor._is_view", "zero-bubble schedules detach what a stage has sent, which views refuse"),
    **{
        name: (ATEN + name, "an operation whose result selective recomputation keeps")
        for name in (
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
        )
    },
    "_get_build_directory": (
        "torch.utils.cpp_extension:_get_build_directory",
        "whether an operator of DeepSpeed is compiled, and its lock, are seen in this folder only",
    ),
    # -- torch: distributed --
    "_composable": ("torch.distributed._composable", "`replicate` over FSDP2 is not exported yet"),
    "_StridedShard": (
        "torch.distributed.tensor.placement_types:_StridedShard",
        "placement of a dimension that tensor and data ranks both split",
    ),
    "_flatten": ("torch.distributed.device_mesh:DeviceMesh._flatten", "one group over replicate and shard"),
    "_local_tensor": (
        "torch.distributed.tensor:DTensor._local_tensor",
        "a rank's part in place; to_local() goes through autograd and waits",
    ),
    "_spec": ("torch.distributed.tensor:DTensor._spec", "a copy on the CPU keeps the placement; from_local moves it"),
    **{
        name: (
            HANDLER + name,
            "torch's handle of a rank starts it by this and opens its log files; ranks are forked here",
        )
        for name in ("_popen", "_stdout", "_stderr")
    },
    "_get_default_store": (
        "torch.distributed.distributed_c10d:_get_default_store",
        "the watchdog asks the other ranks where they are, while collectives hang",
    ),
    "_python_dispatch": (
        "torch.utils._python_dispatch",
        "the mode that sees every operator, DistributedDataParallel's too, to count the bytes that a rank sends",
    ),
    "_opname": ("torch._ops:OpOverload._opname", "which collective an operator of torch is"),
    "_type": ("torch:ScriptObject._type", "which argument of a collective's operator is its process group"),
    "_resolve_process_group": (
        "torch.distributed.distributed_c10d:_resolve_process_group",
        "the group of a functional collective, which is given by its name",
    ),
    "_C": ("torch._C", "home of _distributed_c10d"),
    "_distributed_c10d": ("torch._C:_distributed_c10d", "home of NCCL's flight recorder"),
    "_dump_fr_trace_json": ("torch._C._distributed_c10d:_dump_fr_trace_json", "NCCL's flight recorder of a stall"),
    # -- torch: checkpoints --
    "_hf_utils": ("torch.distributed.checkpoint._hf_utils", "names and metadata of DCP's safetensors files"),
    "_gen_file_name": ("torch.distributed.checkpoint._hf_utils:_gen_file_name", "DCP's names of shards"),
    "_split_by_storage_plan": (
        "torch.distributed.checkpoint:HuggingFaceStorageWriter._split_by_storage_plan",
        "which tensors go into which file, when trireme writes the file itself",
    ),
    # -- torch: elastic agent --
    "_start_workers": (f"{AGENT}_start_workers", "the agent must know the ranks to pass signals on to them"),
    "_monitor_workers": (f"{AGENT}_monitor_workers", "what failed is told here only, and signals end the waiting"),
    "_restart_workers": (f"{AGENT}_restart_workers", "a failure is told before the ranks start again"),
    "_remaining_restarts": (f"{AGENT}_remaining_restarts", "after a signal, ranks are not started again"),
    "_exit_barrier": (f"{AGENT}_exit_barrier", "the agents of all machines leave together"),
    "_exit_barrier_timeout": (f"{AGENT}_exit_barrier_timeout", "how long the agents wait for each other"),
    "_pcontext": (
        "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._pcontext",
        "peers of a failed rank get more than torch's time to end",
    ),
    # -- optuna --
    "_trial_id": ("optuna.trial:FrozenTrial._trial_id", "a trial that a killed search left is gone on with by its id"),
    # -- W&B --
    "_upsert_sweep": (
        "wandb.apis.public.sweeps:_upsert_sweep",
        "wandb.sweep prints, and names no project of the sweep",
    ),
    "_register_agent": ("wandb.apis.public.sweeps:_register_agent", "wandb.agent runs one function in this process"),
    "_agent_heartbeat": ("wandb.apis.public.sweeps:_agent_heartbeat", "wandb.agent ends the function by an exception"),
    # -- safetensors, transformers, Hydra, accelerate --
    "_model_mapping": (
        "transformers.models.auto.auto_factory:_BaseAutoModelClass._model_mapping",
        "which architectures have a head: an Auto class has no public list",
    ),
    "_TYPES": ("safetensors.torch:_TYPES", "names of types in a file's header"),
    "_attn_implementation": ("transformers:PreTrainedConfig._attn_implementation", "the kernel that a model was given"),
    "_from_config": ("transformers:PreTrainedModel._from_config", "a model's class builds itself on the meta device"),
    "_get_feat_extract_output_lengths": (
        "transformers.models.wav2vec2.modeling_wav2vec2:Wav2Vec2PreTrainedModel._get_feat_extract_output_lengths",
        "how many frames a model of speech makes of an audio clip, which the loss must know",
    ),
    "_update_model_kwargs_for_generation": (
        "transformers:GenerationMixin._update_model_kwargs_for_generation",
        "what a model carries from one written token to the next: how many of its tokens are latents",
    ),
    "_init_weights": ("transformers:PreTrainedModel._init_weights", "the rule by which a family draws its weights"),
    "_rnn_scan": (
        "transformers.models.recurrent_gemma.modeling_recurrent_gemma:RecurrentGemmaRglru._rnn_scan",
        "the loop over positions alone is replaced by a scan; gates and resets stay those of transformers",
    ),
    "_keys_to_ignore_on_load_unexpected": (
        "transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected",
        "stored tensors that a family's class declares redundant",
    ),
    "_tied_weights_keys": (
        "transformers:PreTrainedModel._tied_weights_keys",
        "embedding and head lie on different stages of a pipeline, and must not be tied again",
    ),
    "_validate_launch_command": (
        "accelerate.commands.launch:_validate_launch_command",
        "what a configuration file of accelerate stands for",
    ),
    # -- DeepSpeed --
    "_REMOVED_TOP_LEVEL_CONFIG_KEYS": (
        "deepspeed.runtime.config:_REMOVED_TOP_LEVEL_CONFIG_KEYS",
        "what DeepSpeed says of top-level keys that it has dropped",
    ),
    "_REMOVED_ZERO_CONFIG_KEYS": (
        f"{REMOVED}_REMOVED_ZERO_CONFIG_KEYS",
        "what DeepSpeed says of ZeRO keys that it has dropped",
    ),
    "_loaded_ops": (
        "deepspeed.ops.op_builder.builder:OpBuilder._loaded_ops",
        "where its classes find an operator that is loaded; its own way of loading asks the compiler first",
    ),
    "_copy_recovery_script": (
        "deepspeed.runtime.engine:DeepSpeedEngine._copy_recovery_script",
        "it writes a file past the checkpoint engine; an error there must reach all ranks",
    ),
    "_hp_mapping": (
        "deepspeed.utils.mixed_precision_linkage:_init_lp_to_hp_mapping",
        "the range of a parameter that this rank holds in stages 1 and 2; public functions gather it whole",
    ),
    "_PartitionedParameterCoordinator__params_to_release": (
        "deepspeed.runtime.zero.partitioned_param_coordinator:PartitionedParameterCoordinator."
        "_PartitionedParameterCoordinator__params_to_release",
        "its cache holds the models of ended runs; nothing public clears it",
    ),
    "_get_fp32_opt_state_partition": (
        f"{ZERO3}_get_fp32_opt_state_partition",
        "a rank's shard in stage 3 where it lies; the public function copies it to the GPU",
    ),
    "_swappable_optimizer_subgroup": (f"{ZERO3}_swappable_optimizer_subgroup", "whether moments lie on a disk"),
    "_optimizer_states_and_gradient_swap_in": (
        f"{ZERO3}_optimizer_states_and_gradient_swap_in",
        "moments on a disk are read and written for checkpoints",
    ),
    "_optimizer_states_and_gradient_swap_out": (
        f"{ZERO3}_optimizer_states_and_gradient_swap_out",
        "moments on a disk are read and written for checkpoints",
    ),
    "_optimizer_step": (f"{ZERO3}_optimizer_step", "moments come into being by a step with a gradient of zero"),
}
"""Private name -> (where it is, why nothing public serves)."""


def names_used() -> dict[str, set[str]]:
    """Private name of a library -> places in the source that use it."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    trees = {path: ast.parse(path.read_text()) for path in files}
    own = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    used: dict[str, set[str]] = defaultdict(set)
    for path, tree in trees.items():
        for name, line in private_names(tree, own):
            used[name].add(f"{path.relative_to(ROOT)}:{line}")
    return used


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and len(name) > 1


def private_names(tree: ast.Module, own: set[str]) -> Iterator[tuple[str, int]]:
    """Private names of libraries in a file: attributes of objects but ``self``, imports, names given to ``getattr``.

    Args:
        own: names of all classes of trireme.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from ((part, node.lineno) for part in parts if is_private(part))
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            yield from ((part, node.lineno) for part in parts if is_private(part))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BY_NAME:
            values = [value.value for value in node.args[1:2] if isinstance(value, ast.Constant)]
            yield from ((value, node.lineno) for value in values if is_private(value))
        elif isinstance(node, ast.ClassDef):
            yield from inherited_names(node, own)


def inherited_names(node: ast.ClassDef, own: set[str]) -> Iterator[tuple[str, int]]:
    """``self._name`` in a class with a base class of a library that does not define ``_name`` itself."""
    if all(isinstance(base, ast.Name) and base.id in own for base in node.bases):
        return
    functions = [item for item in node.body if isinstance(item, ast.FunctionDef)]
    made = {item.name for item in functions}
    for begin in functions:
        stored = [item for item in ast.walk(begin) if isinstance(item, ast.Attribute)]
        made |= {item.attr for item in stored if isinstance(item.ctx, ast.Store) and begin.name == "__init__"}
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute) and is_private(item.attr) and item.attr not in made:
            yield item.attr, item.lineno


def test_what_is_used_is_listed() -> None:
    used = names_used()
    unlisted = {name: sorted(places) for name, places in used.items() if name not in RELIED_ON}
    assert not unlisted, "write each into RELIED_ON with its reason, or use something public"
    assert not RELIED_ON.keys() - used.keys(), "nothing uses these any more: remove them from RELIED_ON"


@pytest.mark.parametrize("where", [where for where, _ in RELIED_ON.values()])
def test_what_is_listed_exists(where: str) -> None:
    module, _, path = where.partition(":")
    pytest.importorskip(module.partition(".")[0])
    found = importlib.import_module(module)
    *owners, name = path.split(".")
    owner = reduce(getattr, filter(None, owners), found)
    assert not name or hasattr(owner, name) or f"self.{name}" in inspect.getsource(owner)


def test_a_name_of_a_library_is_seen() -> None:
    source = """
from torch._dynamo import config
class Mine(Base):
    def __init__(self): self._own = 1
    def use(self, tensor): return self._own, self._theirs, tensor._version, getattr(tensor, "_grad", None)
"""
    assert {name for name, _ in private_names(ast.parse(source), set())} == {"_dynamo", "_theirs", "_version", "_grad"}
    assert "_theirs" not in {name for name, _ in private_names(ast.parse(source), {"Base"})}
