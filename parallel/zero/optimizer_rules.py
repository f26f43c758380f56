"""Check that optimizer and schedule suit the ZeRO stage and offload, and write them into DeepSpeed's JSON.

These combinations of optimizer and schedule are possible:

=====================  ================  ===================
                       recipe schedule   DeepSpeed scheduler
=====================  ================  ===================
recipe optimizer       yes               yes
DeepSpeed optimizer    no                yes
=====================  ================  ===================
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from ...errors import Problem
from . import json_keys
from .json_fill import JsonFiller, offload_device, zero_block

if TYPE_CHECKING:
    from ..recipe_values import RecipeValues

LISTED = {"adamw", "adam"}
"""Recipe optimizers that DeepSpeed lists as tested with ZeRO."""
ELEMENTWISE = LISTED | {"sgd", "lion", "radam", "nadam", "adamax", "adadelta", "rmsprop"}
"""Optimizers that update every element independently, so that a shard gets the same update as the whole tensor."""
CPU_KERNELS = {"adamw", "adam", "lion"}
"""Optimizers that DeepSpeed's CPU kernels can replace under offload."""
SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
"""The recipe's name for each scheduler of DeepSpeed."""
SHARED = ("lr", "betas", "eps", "weight_decay")
"""Optimizer arguments that both recipe and JSON may set."""


def optimizer_and_scheduler(filler: JsonFiller, recipe: RecipeValues) -> None:
    """Fill and check the ``optimizer`` and ``scheduler`` blocks, and the two switches about optimizers of others."""
    config = filler.config
    optimizer, scheduler = config.get("optimizer"), config.get("scheduler")
    _recipe_optimizer(filler, name_of(recipe.optimizer))
    if isinstance(optimizer, dict):
        _optimizer_block(filler, optimizer, recipe)
        if not isinstance(scheduler, dict):
            filler.refuse(
                "optimizer",
                "is a DeepSpeed optimizer under the recipe's own schedule, which DeepSpeed does not support",
                'add a "scheduler" block, or remove this one: the recipe\'s optimizer is used',
                optimizer.get("type"),
            )
    if isinstance(scheduler, dict):
        _scheduler_block(filler, scheduler, recipe)


def name_of(component: dict[str, Any]) -> str:
    """Lower-case class name of a component: ``adamw`` for ``{"_target_": "torch.optim.AdamW"}``."""
    return str(component.get("_target_", "")).rpartition(".")[2].lower()


GROUPS = ("adamw", "lion", "sgd")
"""Files of configs/optimizer whose optimizers DeepSpeed has too."""


def needs_whole_tensors(name: str) -> bool:
    """Whether an optimizer computes updates from whole tensors, so that updates of shards would differ."""
    return any(part in name for part in ("8bit", "adafactor", "lamb", "lars", "muon", "shampoo", "soap"))


def _recipe_optimizer(filler: JsonFiller, name: str) -> None:
    config = filler.config
    stage, device = zero_block(config).get("stage", 0), offload_device(config, "offload_optimizer")
    untested = config.get("zero_allow_untested_optimizer", "auto")
    if device != "none" and needs_whole_tensors(name):
        problem = Problem("optimizer", f"{name} has no CPU implementation, which offload needs", "use optimizer=adamw")
        filler.problems.append(problem)
    elif stage in (1, 2, 3) and needs_whole_tensors(name):
        why = f"{name} needs whole tensors, but ZeRO stage {stage} steps shards of them, which would change its updates"
        filler.problems.append(Problem("optimizer", why, "use optimizer=adamw, or plan=zero0"))
    elif stage in (1, 2, 3) and untested is False and name not in LISTED:
        filler.refuse(
            "zero_allow_untested_optimizer", f"keeps DeepSpeed from using {name}", 'write true, or "auto"', False
        )
    elif stage in (1, 2, 3) and untested == "auto" and name not in ELEMENTWISE:
        why = f"{name} may not update every element independently, and ZeRO stage {stage} steps shards of tensors"
        fix = "use optimizer=adamw, or, if it does, set plan.deepspeed.zero_allow_untested_optimizer=true"
        filler.problems.append(Problem("optimizer", why, fix))
    if untested == "auto":
        config["zero_allow_untested_optimizer"] = name not in LISTED
    forced = config.get("zero_force_ds_cpu_optimizer", "auto")
    if forced == "auto":
        config["zero_force_ds_cpu_optimizer"] = name in CPU_KERNELS
    elif forced is True and device != "none" and name not in CPU_KERNELS and "optimizer" not in config:
        filler.refuse(
            "zero_force_ds_cpu_optimizer",
            f"asks for a CPU optimizer of DeepSpeed, which has none for {name}",
            'write false, or "auto"',
            True,
        )
    if device == "nvme" and config["zero_force_ds_cpu_optimizer"] is False and "optimizer" not in config:
        why = f"{name} keeps state that DeepSpeed cannot swap to disk"
        filler.problems.append(Problem("optimizer", why, "use optimizer=adamw, or offload to cpu"))


def _optimizer_block(filler: JsonFiller, block: dict[str, Any], recipe: RecipeValues) -> None:
    kind, name = block.get("type"), name_of(recipe.optimizer)
    arguments = _arguments_of(str(kind)) if isinstance(kind, str) else None
    if arguments is None:
        known_types = ["AdamW", "Adam", "Lion", "Adagrad", "Lamb", "SGD"]
        filler.refuse(
            "optimizer.type",
            "is not an optimizer of DeepSpeed or torch",
            json_keys.nearest(str(kind), known_types),
            kind,
        )
        return
    params = block.setdefault("params", {})
    agrees = str(kind).lower() == name or (str(kind) == "Adam" and name == "adamw" and params.get("adam_w_mode", True))
    if not agrees:
        fix = f"{_recipe_for(str(kind))}remove this block: the recipe's optimizer is used"
        filler.refuse("optimizer.type", f"contradicts the recipe's optimizer, {name}", fix, kind)
        return
    filler.problems += json_keys.unknown_arguments(params, arguments, "optimizer.params", f"DeepSpeed's {kind}")
    for key in SHARED:
        if recipe.optimizer.get(key) is not None:
            filler.set(f"optimizer.params.{key}", recipe.optimizer[key], f"optimizer.{key}")


def _recipe_for(kind: str) -> str:
    """Beginning of a fix that sets the recipe's optimizer to ``kind``; empty if recipes do not have it."""
    import torch

    if kind.lower() in GROUPS:
        return f"set optimizer={kind.lower()}, or "
    return f"write optimizer: {{_target_: torch.optim.{kind}}} in the recipe, or " if hasattr(torch.optim, kind) else ""


def _arguments_of(kind: str) -> list[str] | None:
    """Arguments that ``optimizer.params`` may have; None for a type that DeepSpeed cannot build."""
    import torch
    from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lamb import FusedLamb
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

    own = {
        "adam": (DeepSpeedCPUAdam, FusedAdam),
        "adamw": (DeepSpeedCPUAdam, FusedAdam),
        "adagrad": (DeepSpeedCPUAdagrad,),
        "lamb": (FusedLamb,),
        "lion": (DeepSpeedCPULion, FusedLion),
    }
    classes = own.get(kind.lower())
    if classes is None:
        found = getattr(torch.optim, kind, None)
        if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
            return None
        classes = (found,)
    taken = [name for each in classes for name in inspect.signature(each).parameters]
    extra = ["torch_adam", "adam_w_mode", "fp32_optimizer_states"] if kind.lower() in ("adam", "adamw") else []
    return list(dict.fromkeys([*(name for name in taken if name not in ("params", "model_params")), *extra]))


def _scheduler_block(filler: JsonFiller, block: dict[str, Any], recipe: RecipeValues) -> None:
    from deepspeed.runtime import lr_schedules
    from torch.optim import lr_scheduler

    kind = block.get("type")
    found = getattr(lr_schedules, str(kind), None) or getattr(lr_scheduler, str(kind), None)
    if not (isinstance(kind, str) and inspect.isclass(found)):
        fix = json_keys.nearest(str(kind), lr_schedules.VALID_LR_SCHEDULES)
        filler.refuse("scheduler.type", "is not a scheduler of DeepSpeed or torch", fix, kind)
        return
    params = block.setdefault("params", {})
    taken = [name for name in inspect.signature(found).parameters if name != "optimizer"]
    filler.problems += json_keys.unknown_arguments(params, taken, "scheduler.params", kind)
    stands_for = SCHEDULES.get(kind)
    if stands_for is None:
        return  # OneCycle, LRRangeTest and torch's schedulers have no counterpart in recipes
    if recipe.schedule != stands_for:
        fix = f"set scheduler={stands_for}, or remove the block: the recipe's schedule is used"
        filler.refuse(
            "scheduler.type", f"means {stands_for}, which contradicts scheduler.name = {recipe.schedule}", fix, kind
        )
        return
    if recipe.warmup_steps is not None and recipe.warmup_steps < 2:
        why = f"warms up over at least two steps, but scheduler.warmup_steps = {recipe.warmup_steps}"
        filler.refuse("scheduler.type", why, "set scheduler.warmup_steps=2 or more, or remove the block", kind)
        return
    _scheduler_params(filler, kind, recipe)


def _scheduler_params(filler: JsonFiller, kind: str, recipe: RecipeValues) -> None:
    lr = recipe.optimizer.get("lr")
    values: dict[str, tuple[Any, str]] = {"warmup_num_steps": (recipe.warmup_steps, "scheduler.warmup_steps")}
    if kind == "WarmupCosineLR":
        values["warmup_min_ratio"] = (0.0, "the warm-up of scheduler.name = cosine")
        values["cos_min_ratio"] = (recipe.min_lr_ratio, "scheduler.min_lr_ratio")
    else:
        values["warmup_min_lr"] = (0.0, f"the warm-up of scheduler.name = {recipe.schedule}")
        values["warmup_max_lr"] = (lr, "optimizer.lr")
    if kind != "WarmupLR":
        values["total_num_steps"] = (recipe.max_steps, "trainer.max_steps")
    for key, (value, source) in values.items():
        if value is not None:
            filler.set(f"scheduler.params.{key}", value, source)
    # The warm-up of recipes is linear; DeepSpeed's default follows the logarithm of the step.
    filler.set("scheduler.params.warmup_type", "linear", f"the warm-up of scheduler.name = {recipe.schedule}")
