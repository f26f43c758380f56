"""Convert a DeepSpeed JSON file into a recipe that refers to the file and repeats its main values: batch sizes,
clipping, precision, optimizer and schedule.

The run reads the file too, so both must agree. Values that are ``auto`` or missing in the file follow the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...configs.names_of_other_tools import value_fix
from .recipe_draft import Draft
from .rule import Arguments, option

MARKS = ("zero_optimization", "train_micro_batch_size_per_gpu", "train_batch_size")
"""Keys by which a JSON of DeepSpeed is recognised."""
OPTIMIZER = ("lr", "betas", "eps", "weight_decay")
"""Arguments of the same name here."""


def take_deepspeed(draft: Draft, path: Path, given: Arguments, ranks: int) -> None:
    """Convert the values of the file into the draft.

    Args:
        ranks: data ranks of the run, by which a global batch is counted.
    """
    option(draft, "plan", "zero_optimization.stage", f"zero{_block(given, 'zero_optimization').get('stage', 0)}")
    draft.set("plan.deepspeed", str(path))
    micro, whole = (_number(given.get(name)) for name in ("train_micro_batch_size_per_gpu", "train_batch_size"))
    accumulation = _number(given.get("gradient_accumulation_steps")) or 1
    if (
        not micro
        and whole
        and _number(given.get("gradient_accumulation_steps"))
        and whole % (accumulation * ranks) == 0
    ):
        micro = whole // (accumulation * ranks)
    if micro:
        draft.set("trainer.micro_batch_size", micro)
    if whole or micro:
        draft.now = ("train_batch_size" if whole else "train_micro_batch_size_per_gpu",)
        draft.set("trainer.global_batch_size", whole or (micro or 0) * accumulation * ranks)
    clipping = given.get("gradient_clipping")
    draft.now = ()
    if isinstance(clipping, int | float) and not isinstance(clipping, bool):
        draft.set("trainer.max_grad_norm", float(clipping) or None)
    for name in ("bf16", "bfloat16", "fp16"):
        if _block(given, name).get("enabled") is True:
            draft.set("plan.precision", "fp16" if name == "fp16" else "bf16")
    _optimizer(draft, given)
    _schedule(draft, given)


def _optimizer(draft: Draft, given: Arguments) -> None:
    block = _block(given, "optimizer")
    if not block:
        return
    kind, params = str(block.get("type", "")), _block(block, "params")
    name = {"adam": "adamw"}.get(kind.lower(), kind.lower())
    option(draft, "optimizer", "optimizer.type", name)
    for key in OPTIMIZER:
        if params.get(key, "auto") != "auto":
            draft.set(f"optimizer.{key}", params[key])
    if not _block(given, "scheduler"):
        why = "DeepSpeed's optimizer needs a scheduler of DeepSpeed: remove this block from the file, or add one"
        draft.leave("optimizer", kind, why)


def _schedule(draft: Draft, given: Arguments) -> None:
    block = _block(given, "scheduler")
    kind, params = str(block.get("type", "")), _block(block, "params")
    if not block:
        return
    if not value_fix("scheduler", kind):
        draft.leave("scheduler.type", kind, "it sets the learning rate by itself, from the file")
        return
    option(draft, "scheduler", "scheduler.type", kind)
    if warmup := _number(params.get("warmup_num_steps")):
        draft.set("scheduler.warmup_steps", warmup)
        draft.set("scheduler.warmup_ratio", None)
    if steps := _number(params.get("total_num_steps")):
        draft.set("trainer.max_steps", steps)
        draft.set("trainer.epochs", None)
    if isinstance(rate := params.get("warmup_max_lr"), int | float):
        draft.set("optimizer.lr", rate)


def _block(given: Arguments, name: str) -> dict[str, Any]:
    found = given.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> int | None:
    """A whole number; None for ``auto`` and for a missing value."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
