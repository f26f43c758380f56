"""Find options of a recipe that have no effect in this run, and settings that make little sense, such as a preference
task whose reference model has random weights. ``trireme check`` and the start of a run list them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .component import locate

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from ..parallel.plan import Plan

GUARD = "trireme.trainer.callbacks.nonfinite.NonFinite"
GUARD_OPTIONS = {
    "patience": (10, ("skip",)),
    "every": (10, ("stop", "rollback")),
    "max_rollbacks": (3, ("rollback",)),
}
"""Options of the NaN guard -> their defaults, and the actions that read them (in fp16 all read ``patience``)."""


TRACKERS = "trireme.trainer.trackers."
MAKERS = {
    "curve": (
        "trireme.trainer.callbacks.curve.Curve",
        "the callback curve draws it, and is not in this recipe; it is in callbacks=default",
    ),
    "samples": (
        "trireme.trainer.callbacks.sample.Sample",
        "the callback sample writes them, and is not in this recipe: callbacks=[default,sample]",
    ),
}
"""Kinds of files that trackers keep -> the callback that makes them, and what to say without it."""
BEST_MODEL = "trireme.trainer.callbacks.best_model.BestModel"


def ignored_options(recipe: RecipeConfig, max_steps: int | None = None) -> list[str]:
    """A sentence for every option that has no effect.

    Args:
        max_steps: steps of the run, if known; None takes ``trainer.max_steps``.
    """
    steps = max_steps or recipe.trainer.max_steps
    return [
        *_of_plan(recipe.plan),
        *_of_evaluation(recipe),
        *_of_guard(recipe),
        *_of_trackers(recipe),
        *_of_reference(recipe),
        *_of_memory(recipe),
        *(_of_calendar(recipe, steps) if steps else ()),
    ]


def _of_plan(plan: Plan) -> Iterator[str]:
    """Options of engines that the plan does not use: each engine has a block of options that only it reads."""
    used = {
        "ddp": (plan.data_parallel == "ddp", "does not use DistributedDataParallel"),
        "fsdp": (plan.data_parallel == "fsdp", "does not use FSDP2"),
        "pipelining": (plan.pipeline != 1, "has no pipeline stages"),
        "deepspeed": (plan.uses_deepspeed, "does not use DeepSpeed"),
    }
    for block, (is_used, why) in used.items():
        if not is_used:
            for key, value in _changed(getattr(plan, block)):
                yield f"plan.{block}.{key}={value} has no effect: plan {plan.name} {why}"


def _of_reference(recipe: RecipeConfig) -> Iterator[str]:
    """A preference task whose reference model has random weights, so that its log-probabilities mean nothing."""
    from .tasks.preference import Preference

    kind = locate(recipe.task["_target_"])
    if isinstance(kind, type) and issubclass(kind, Preference) and recipe.model.weights is None:
        yield (
            "answers are compared with a model of random weights, since model.weights is null: name the model that was "
            "fine-tuned on chats before"
        )


def _of_memory(recipe: RecipeConfig) -> Iterator[str]:
    """A model that carries a memory, with samples that do not follow each other."""
    from .tasks.task import learns_from_rows

    if recipe.model.spec.carried and recipe.data.packing != "lanes" and not learns_from_rows(recipe.task):
        yield (
            f"{recipe.model.spec.title} remembers nothing of earlier samples, since data.packing={recipe.data.packing} "
            "gives samples that stand alone; data.packing=lanes gives them in the order of the text"
        )


def _changed(block: Any) -> Iterator[tuple[str, Any]]:
    """Fields that differ from their defaults."""
    if dataclasses.is_dataclass(block):
        usual = type(block)()  # type: ignore[call-arg]
        for field in dataclasses.fields(block):
            value = getattr(block, field.name)
            if value != getattr(usual, field.name):
                yield field.name, value


def _of_evaluation(recipe: RecipeConfig) -> Iterator[str]:
    if recipe.data.held_out or recipe.data.eval_source is not None or recipe.data.eval_sets:
        return
    why = "nothing is held out to evaluate on (data.held_out=0, and no data.eval_source)"
    for key in ("eval_every", "eval_samples"):
        if (value := getattr(recipe.trainer, key)) is not None:
            yield f"trainer.{key}={value} has no effect: {why}"
    if recipe.checkpoint.keep_best:
        yield f"checkpoint.keep_best={recipe.checkpoint.keep_best} has no effect: {why}"


def _of_guard(recipe: RecipeConfig) -> Iterator[str]:
    """Options of the NaN guard that belong to an action other than the chosen one."""
    for name, callback in recipe.callbacks.items():
        if callback["_target_"] != GUARD:
            continue
        action = callback.get("action", "skip")
        for option, (usual, used_by) in GUARD_OPTIONS.items():
            read = action in used_by or (option == "patience" and recipe.plan.precision == "fp16")
            if not read and callback.get(option, usual) != usual:
                yield (
                    f"callbacks.{name}.{option}={callback[option]} has no effect: action={action} does not read it, "
                    f"{' and '.join(used_by)} {'do' if len(used_by) > 1 else 'does'}"
                )


def _of_trackers(recipe: RecipeConfig) -> Iterator[str]:
    """Files that trackers are to keep, and that no part of the run makes."""
    made = {kind: any(map(_is(target), recipe.callbacks.values())) for kind, (target, _) in MAKERS.items()}
    saves = recipe.checkpoint.every is not None or recipe.checkpoint.at_end
    made["checkpoints"] = saves or any(map(_is(BEST_MODEL), recipe.callbacks.values()))
    whys = {kind: why for kind, (_, why) in MAKERS.items()}
    whys["checkpoints"] = "checkpoint.every is null and checkpoint.at_end is false, so none is written"
    for name, callback in recipe.callbacks.items():
        for kind in callback.get("artifacts", ()) if callback["_target_"].startswith(TRACKERS) else ():
            if not made.get(kind, True):
                yield f"callbacks.{name}.artifacts={kind} has no effect: {whys[kind]}"


def _is(target: str) -> Callable[[Mapping[str, Any]], bool]:
    """A function that tells whether a callback of the recipe is of the class ``target``, or of a subclass."""

    def holds(callback: Mapping[str, Any]) -> bool:
        found, base = locate(callback["_target_"]), locate(target)
        return isinstance(found, type) and issubclass(found, base)

    return holds


def _of_calendar(recipe: RecipeConfig, steps: int) -> Iterator[str]:
    trainer, checkpoint = recipe.trainer, recipe.checkpoint
    if trainer.stop_at is not None and trainer.stop_at > steps:
        yield f"trainer.stop_at={trainer.stop_at} has no effect: the run ends at step {steps}"
    if isinstance(trainer.eval_every, int) and trainer.eval_every > steps and not trainer.eval_at_end:
        yield f"trainer.eval_every={trainer.eval_every} has no effect: the run ends at step {steps}"
    if isinstance(checkpoint.every, int) and checkpoint.every > steps and not checkpoint.at_end:
        yield f"checkpoint.every={checkpoint.every} has no effect: the run ends at step {steps}, and saves nothing"
