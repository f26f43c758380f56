"""Check that the metrics named in a recipe exist, and that an evaluation computes them before the run ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import Problem
from ..trainer.cadence import Every
from ..trainer.callbacks.best_model import BestModel
from ..trainer.callbacks.callback import Callback, no_average
from ..trainer.callbacks.early_stopping import EarlyStopping
from ..trainer.checkpoint.checkpoint_config import CheckpointConfig
from ..trainer.data.data_config import DataConfig
from ..trainer.settings import TrainerConfig
from .values import nearest

if TYPE_CHECKING:
    from ..launch.search.search_config import SearchConfig


def check_metrics(
    checkpoint: CheckpointConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    task: Any,
    callbacks: Mapping[str, Any],
    scores: Sequence[str] = (),
) -> list[Problem]:
    """Problems of parts that act on evaluations: rotation of checkpoints, best model, early stopping.

    Args:
        task, callbacks: instances, already built.
        scores: names of the scores of texts that the model generates.
    """
    users = {"checkpoint.metric": checkpoint.metric} if checkpoint.keep_best else {}
    idle = _idle_rotation(checkpoint, trainer, callbacks)
    for name, callback in callbacks.items():
        if isinstance(callback, EarlyStopping):
            users[f"callbacks.{name}.metric"] = callback.metric
        elif isinstance(callback, BestModel):
            users["checkpoint.metric"] = checkpoint.metric
        else:
            continue
        if why := _never(trainer, data):
            idle.append(Problem(f"callbacks.{name}", f"acts on evaluations, and {why}", _REMEDY))
    known = _known(task, callbacks, data, scores)
    unknown = [
        Problem(field, "nothing in this recipe computes this metric", _instead(metric, sorted(known)), metric)
        for field, metric in users.items()
        if known and metric not in known
    ]
    return [*unknown, *idle]


def check_averages(averages: bool, callbacks: Mapping[str, Any]) -> list[Problem]:
    """Problems of callbacks that need averaged weights, in a run that keeps none (``averages`` is false)."""
    needing = [name for name, each in callbacks.items() if isinstance(each, Callback) and each.needs_average]
    return [] if averages else [no_average(f"callbacks.{name}.ema") for name in needing]


def check_objectives(
    search: SearchConfig,
    checkpoint: CheckpointConfig,
    trainer: TrainerConfig,
    data: DataConfig,
    task: Any,
    callbacks: Mapping[str, Any],
    scores: Sequence[str] = (),
) -> list[Problem]:
    """Problems of metrics that a search judges its trials by, and that no trial reports."""
    field = "search.objectives" if search.objectives else "checkpoint.metric"
    names = [] if search.function else list(search.objectives or [checkpoint.metric])
    evaluated = [name for name in names if name.startswith("eval_")]
    known = _known(task, callbacks, data, scores)
    problems = []
    if known:  # else a task or callback of the user's own may add any metric
        steps = [*OF_STEPS, *getattr(task, "step_metrics", ())]
        unknown = [name for name in names if name not in known and not _of_steps(name, steps)]
        logged = [*sorted(known), *steps]
        problems = [Problem(field, "no trial computes this metric", _instead(name, logged), name) for name in unknown]
    never = _never(trainer, data) if not trainer.eval_at_end or "held-out" in _never(trainer, data) else ""
    if evaluated and not problems and never:
        fix = "set trainer.eval_at_end=true and keep some held-out data, or choose another metric"
        problems.append(Problem(field, f"is of evaluations, and {never}", fix, evaluated[0]))
    return problems


def _instead(metric: str, logged: Sequence[str]) -> str:
    """The fix for an unknown metric: the one that it is nearest to, and those that the recipe logs."""
    near = nearest(metric, logged, NEAR)
    listed = ", ".join(logged[:LISTED]) + (f" and {len(logged) - LISTED} more" if len(logged) > LISTED else "")
    return f"did you mean {near}? This recipe logs {listed}" if near else f"choose one that this recipe logs: {listed}"


NEAR = 0.7
"""Likeness from which a metric is suggested: ``eval_bleu`` means no ``eval_loss``."""
LISTED = 30
"""Metrics that a message lists."""
OF_STEPS = ("loss", "grad_norm", "lr", "memory_mib", "mfu")
"""Metrics of training lines; beside them rates, and losses by source."""


def _of_steps(name: str, steps: Sequence[str]) -> bool:
    return name in steps or name.endswith("_per_second") or name.startswith("loss/")


_REMEDY = "set trainer.eval_every to a number of steps or to epoch, or leave this out"


def _never(trainer: TrainerConfig, data: DataConfig) -> str:
    """Reason why no evaluation runs before the end; empty if one does."""
    if data.eval_source is None and data.held_out == 0 and not data.eval_sets:
        return "there is no held-out data (data.held_out is 0)"
    if trainer.eval_every is None:
        return "trainer.eval_every is null, so none runs before the end"
    if trainer.max_steps is not None and _meet(trainer.eval_every, 1) > trainer.max_steps:
        return f"trainer.eval_every={trainer.eval_every} is beyond trainer.max_steps ({trainer.max_steps})"
    return ""


def _idle_rotation(checkpoint: CheckpointConfig, trainer: TrainerConfig, callbacks: Mapping[str, Any]) -> list[Problem]:
    """The problem of ``keep_best`` if no checkpoint before the end is written at an evaluated step."""
    if not checkpoint.keep_best:
        return []
    why = ""
    saves_best = any(isinstance(callback, BestModel) for callback in callbacks.values())
    own = any(not type(callback).__module__.startswith("trireme.") for callback in callbacks.values())
    if trainer.eval_every is None:
        why = "ranks checkpoints by evaluations, but trainer.eval_every is null, so none runs before the end"
    elif saves_best or own:  # they may save at any step
        return []
    elif checkpoint.every is None:
        why = "ranks checkpoints, but checkpoint.every is null, so none is written before the end"
    elif trainer.max_steps is not None and _meet(checkpoint.every, trainer.eval_every) > trainer.max_steps:
        why = (
            f"ranks checkpoints of evaluated steps, and checkpoint.every={checkpoint.every} and "
            f"trainer.eval_every={trainer.eval_every} never meet in {trainer.max_steps} steps"
        )
    fix = "set both to the same number, add the callback best_model, or set checkpoint.keep_best=0"
    return [Problem("checkpoint.keep_best", why, fix, checkpoint.keep_best)] if why else []


def _meet(*cadences: Every) -> int:
    """First step at which all are due, 1 if that depends on the length of a pass."""
    steps = [every for every in cadences if isinstance(every, int)]
    return math.lcm(*steps) if len(steps) == len(cadences) else 1


def _known(task: Any, callbacks: Mapping[str, Any], data: DataConfig, scores: Sequence[str]) -> set[str]:
    """Names in an evaluation line; empty if they are unknown, since the user's own task or callback may add any."""
    names = getattr(task, "metric_names", None)
    if names is None or any(not type(callback).__module__.startswith("trireme.") for callback in callbacks.values()):
        return set()
    prefixes = ("eval_", *(f"eval_{name}_" for name in data.eval_sets))
    sources = data.sources if data.sources and data.eval_source is None else ()
    ends = ("", *(f"/{source}" for source in sources))
    all_names = (*names, *scores)
    return {f"{prefix}{name}" for prefix in prefixes for name in all_names} | {
        f"eval_{name}{end}" for name in all_names for end in ends
    }
