"""Convert a configuration of Hugging Face ``accelerate`` (FSDP, DeepSpeed, parallelism) into overrides of a recipe.
Refuse settings that contradict the recipe or have no counterpart here, and restrict ranks to the GPUs of ``gpu_ids``.

``accelerate launch`` passes its configuration to ranks in environment variables. ``--accelerate-config FILE`` reads the
same configuration from its file, without that launcher.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..models.json_file import read_json
from .accelerate_file import HOSTS, SOURCE, settings_of_file, unknown_precision
from .fsdp_options import FSDP_PLANS

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def settings_of_launcher() -> dict[str, str]:
    """Environment variables with the configuration of ``accelerate launch``; empty under another launcher."""
    return dict(os.environ) if "ACCELERATE_MIXED_PRECISION" in os.environ else {}


def take_gpus(settings: Mapping[str, str]) -> None:
    """Restrict ranks that are started here to the GPUs of ``gpu_ids``.

    Raises:
        UserError: the environment says something else.
    """
    for variable in ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        wanted = settings.get(variable)
        if wanted is not None and os.environ.setdefault(variable, wanted) != wanted:
            why = f"{SOURCE} says gpu_ids: {wanted}"
            raise UserError(Problem(variable, why, "remove one of the two", os.environ[variable]))


def not_here(settings: Mapping[str, str]) -> list[Problem]:
    """Reasons why this command cannot start ranks with these settings."""
    fix = "give this file to `accelerate launch` on each of them, or use launch=slurm"
    found = [
        Problem(name, f"{SOURCE} means several machines, and this command starts ranks on this one", fix, value)
        for name in ("num_machines", *HOSTS)
        if (value := settings.get(name, "1")) != "1"
    ]
    if _true(settings, "ACCELERATE_USE_CPU"):
        import torch

        if torch.accelerator.device_count():
            fix = "hide the GPUs: CUDA_VISIBLE_DEVICES= (nothing), or say use_cpu: false there"
            found.append(Problem("use_cpu", f"{SOURCE} asks for the CPU, and ranks take GPUs where there are any", fix))
    return found


def take_choices(options: argparse.Namespace) -> None:
    """Add the choices of accelerate's configuration to the overrides, and keep its settings in ``options.accelerate``.

    Raises:
        UserError: the configuration cannot be read, has no counterpart here, or contradicts the command line.
    """
    if options.accelerate_config:
        options.accelerate, processes = settings_of_file(options.accelerate_config)
        if options.nproc not in (None, processes):
            why = f"{SOURCE} says num_processes: {processes}"
            raise UserError(Problem("--nproc", why, "remove one of the two", options.nproc))
        options.nproc = None if "RANK" in os.environ else processes
    else:
        options.accelerate = settings_of_launcher()
        if options.accelerate and options.nproc is None and "RANK" not in os.environ:
            options.nproc = 1  # accelerate's launcher sets no RANK for a single process
            _say_one_rank(asked_processes())
    options.overrides = with_choices(options.overrides, options.accelerate)
    if _several_processes(options.accelerate) and _plan_is_left_open(options):
        options.overrides = ["plan=ddp", *options.overrides]


def _several_processes(settings: Mapping[str, str]) -> bool:
    """Whether the settings mean plain data parallelism: several processes, and no engine (MULTI_GPU, MULTI_CPU)."""
    processes = settings.get("num_processes") or os.environ.get("WORLD_SIZE", "1")
    engines = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG")
    return bool(settings) and int(processes) > 1 and not any(_true(settings, name) for name in engines)


def _plan_is_left_open(options: argparse.Namespace) -> bool:
    """Whether neither the command line nor the recipe has chosen a plan of several processes."""
    from .compose import compose
    from .overrides import without_choices

    if any(text.lstrip("+").startswith(("plan=", "plan.")) and "precision" not in text for text in options.overrides):
        return False
    fixed = without_choices(options.overrides) if getattr(options, "multirun", False) else options.overrides
    return compose(options.recipe, fixed, options.recipe_dir).raw["plan"].get("name") == "single"


def asked_processes() -> int:
    """``--num_processes`` of the ``accelerate launch`` that has started this process; 1 if it is not known."""
    import psutil

    try:
        words = psutil.Process().parent().cmdline()  # type: ignore[union-attr]
    except (psutil.Error, AttributeError):
        return 1
    line = " ".join(words)
    found = re.search(r"--num[_-]processes[= ](\d+)", line) if "accelerate" in line else None
    return int(found[1]) if found else 1


def _say_one_rank(asked: int) -> None:
    if asked > 1:
        print(
            f"accelerate launch starts one process on the CPU, though {asked} were asked for; this run has one rank. "
            f"For {asked}: trireme train ... --nproc {asked}, or torchrun --nproc-per-node {asked}",
            file=sys.stderr,
            flush=True,
        )


def with_choices(overrides: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    """Overrides that accelerate's ``settings`` stand for, followed by the recipe's own.

    Raises:
        UserError: a setting has no counterpart here, or an override says something else.
    """
    given = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in overrides)}
    problems, added = [], []
    for key, value in _choices(settings).items():
        if key not in given:
            added.append(f"{key}={value}")
        elif not _same(given[key], value):
            problems.append(Problem(key, f"{SOURCE} says {value}", "remove one of the two", given[key]))
    if problems:
        raise UserError(*problems)
    return [*added, *overrides]


def contradictions(settings: Mapping[str, str], recipe: RecipeConfig, world_size: int) -> list[Problem]:
    """Differences between accelerate's settings and the recipe that no override can settle."""
    found, trainer = [], recipe.trainer
    data = recipe.plan.degrees(world_size).data
    accumulation = trainer.global_batch_size // (trainer.micro_batch_size * data)
    wanted = settings.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if wanted.isdecimal() and int(wanted) != accumulation:
        why = f"{SOURCE} says gradient_accumulation_steps: {wanted}, the recipe accumulates {accumulation}"
        fix = f"set it to {accumulation} or auto there, or change trainer.micro_batch_size"
        found.append(Problem("trainer.micro_batch_size", why, fix, trainer.micro_batch_size))
    return found


def _choices(settings: Mapping[str, str]) -> dict[str, str]:
    """Overrides that the settings stand for: key of the recipe -> value."""
    if _true(settings, "ACCELERATE_USE_MEGATRON_LM"):
        raise UserError(Problem(SOURCE, "asks for Megatron-LM", "use plan=3d, tp or pp_1f1b of trireme", ""))
    chosen = {}
    if _true(settings, "ACCELERATE_USE_FSDP"):
        chosen |= _fsdp(settings)
    elif _true(settings, "ACCELERATE_USE_DEEPSPEED"):
        chosen |= _deepspeed(settings)
    chosen |= _degrees(settings)
    clipping = settings.get("ACCELERATE_GRADIENT_CLIPPING", "none")
    if clipping not in ("none", "auto"):
        chosen["trainer.max_grad_norm"] = clipping
    precision = settings.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision in ("bf16", "fp16"):
        chosen["plan.precision"] = precision
    elif precision != "no":  # "no" is accelerate's default, so it does not count as a choice
        raise UserError(unknown_precision(precision))
    backend = settings.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper()
    if backend == "INDUCTOR":
        chosen["plan.compile"] = "true"
    elif backend != "NO":
        raise UserError(Problem("dynamo_backend", f"{SOURCE} asks for it", "use no or inductor", backend.lower()))
    if backend != "NO":
        for name, default in (("MODE", "default"), ("USE_FULLGRAPH", "false"), ("USE_DYNAMIC", "false")):
            value = settings.get(f"ACCELERATE_DYNAMO_{name}", default).lower()
            if value != default:
                why = f"{SOURCE} asks for it; blocks are compiled with torch's defaults"
                raise UserError(Problem(f"dynamo_{name.lower()}", why, "leave it out", value))
    if _true(settings, "ACCELERATE_CPU_AFFINITY"):
        chosen["run.bind_cores"] = "true"
    return chosen


def _same(one: str, other: str) -> bool:
    return one.lower() == other.lower() or (_number(one) is not None and _number(one) == _number(other))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _fsdp(settings: Mapping[str, str]) -> dict[str, str]:
    get = settings.get
    if get("FSDP_VERSION") == "2":
        reshard = get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
        if reshard not in ("true", "false"):
            raise UserError(
                Problem(
                    "fsdp_reshard_after_forward", "must be true or false with FSDP2", "write true or false", reshard
                )
            )
        strategy = "FULL_SHARD" if reshard == "true" else "SHARD_GRAD_OP"
    else:
        strategy = get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
        strategy = list(FSDP_PLANS)[int(strategy) - 1] if strategy in ("1", "2", "3", "4", "5") else strategy
    if strategy not in FSDP_PLANS:
        raise UserError(Problem("fsdp_sharding_strategy", "is not known", f"use {', '.join(FSDP_PLANS)}", strategy))
    chosen = {"plan": FSDP_PLANS[strategy]}
    if _true(settings, "FSDP_OFFLOAD_PARAMS"):
        chosen["plan.fsdp.offload"] = "true"
    if _true(settings, "FSDP_ACTIVATION_CHECKPOINTING"):
        chosen["plan.recompute"] = "full"
    if _true(settings, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"):
        raise UserError(Problem("fsdp_activation_checkpointing_offload", "has no counterpart", "leave it out", "true"))
    if _true(settings, "FSDP_FORWARD_PREFETCH"):
        chosen["plan.fsdp.forward_prefetch"] = "1"
    wrap = get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    if wrap == "NO_WRAP":
        fix = "use TRANSFORMER_BASED_WRAP, or a large fsdp_min_num_params with SIZE_BASED_WRAP"
        raise UserError(Problem("fsdp_auto_wrap_policy", "would gather the whole model at once", fix, wrap))
    if wrap == "SIZE_BASED_WRAP":
        chosen["plan.fsdp.min_num_params"] = str(int(float(get("FSDP_MIN_NUM_PARAMS", "1e8"))))
    elif classes := get("FSDP_TRANSFORMER_CLS_TO_WRAP", ""):
        chosen["plan.fsdp.transformer_layer_cls_to_wrap"] = f"[{classes}]"
    prefetch = get("FSDP_BACKWARD_PREFETCH", "BACKWARD_PRE").lower()
    if prefetch not in ("backward_pre", "none"):
        chosen["plan.fsdp.backward_prefetch"] = prefetch  # the plan refuses this value by its name
    if get("FSDP_IGNORED_MODULES"):
        fix = "freeze parameters instead: model.frozen=[...]"
        raise UserError(Problem("fsdp_ignored_modules", "is not supported by FSDP2", fix, get("FSDP_IGNORED_MODULES")))
    return chosen


def _deepspeed(settings: Mapping[str, str]) -> dict[str, str]:
    file = settings.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if file and file != "none":
        try:
            stage = read_json(Path(file)).get("zero_optimization", {}).get("stage", 0)
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                Problem("deepspeed_config_file", f"cannot be read: {error}", "name a JSON file of DeepSpeed", file)
            ) from None
        return {"plan": f"zero{stage}", "plan.deepspeed": file}
    stage = settings.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    chosen = {"plan": f"zero{stage}"}
    for ours, theirs in (("offload_optimizer", "OFFLOAD_OPTIMIZER"), ("offload_param", "OFFLOAD_PARAM")):
        device = settings.get(f"ACCELERATE_DEEPSPEED_{theirs}_DEVICE", "none")
        if device != "none" and ours == "offload_param" and stage != "3":
            _say_once(f"{SOURCE}: offload_param_device: {device} does nothing with zero_stage: {stage}; left out")
            continue
        if device != "none":
            chosen[f"plan.deepspeed.{ours}.device"] = device
        path = settings.get(f"ACCELERATE_DEEPSPEED_{theirs}_NVME_PATH", "none")
        if device == "nvme" and path != "none":
            chosen[f"plan.deepspeed.{ours}.nvme_path"] = path
    return chosen


def _say_once(text: str) -> None:
    """Print a line on standard error, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def _degrees(settings: Mapping[str, str]) -> dict[str, str]:
    """Degrees of the plan from accelerate's ``parallelism_config``."""
    if not _true(settings, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        return {}
    sizes = {name: int(settings.get(f"PARALLELISM_CONFIG_{name}_SIZE", "1")) for name in ("CP", "SP")}
    for name, size in sizes.items():
        if size > 1:
            raise UserError(
                Problem(f"parallelism_config_{name.lower()}_size", "splits sequences", "use plan.tensor", size)
            )
    named = {"replicate": "DP_REPLICATE", "shard": "DP_SHARD", "tensor": "TP"}
    degrees = {ours: settings.get(f"PARALLELISM_CONFIG_{theirs}_SIZE", "1") for ours, theirs in named.items()}
    return {f"plan.{axis}": size for axis, size in degrees.items()}


def _true(settings: Mapping[str, str], name: str) -> bool:
    return settings.get(name, "false").lower() in ("true", "1", "yes")
