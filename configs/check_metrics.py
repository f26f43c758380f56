"""Check that the metrics named in a recipe or a search exist, and that the run computes them before they are needed.
Also refuse callbacks that need averaged weights in a run without them.
"""

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
    """Problems of recipe parts that need a metric of evaluations: rotation of checkpoints, best model, early stopping.

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
        if why := _no_evaluation(trainer, data):
            idle.append(Problem(f"callbacks.{name}", f"needs evaluations during the run, but {why}", _REMEDY))
    known = _known_metrics(task, callbacks, data, scores)
    unknown = [
        Problem(field, "nothing in this recipe computes this metric", _fix(metric, sorted(known)), metric)
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
    known = _known_metrics(task, callbacks, data, scores)
    problems = []
    if known:  # else a task or callback of the user's own may add any metric
        steps = [*OF_STEPS, *getattr(task, "step_metrics", ())]
        unknown = [name for name in names if name not in known and not _is_step_metric(name, steps)]
        logged = [*sorted(known), *steps]
        problems = [Problem(field, "no trial computes this metric", _fix(name, logged), name) for name in unknown]
    never = _no_evaluation(trainer, data)
    if trainer.eval_at_end and "held-out" not in never:
        never = ""
    if evaluated and not problems and never:
        fix = "set trainer.eval_at_end=true and keep some held-out data, or choose another metric"
        problems.append(Problem(field, f"comes from evaluations, and no trial has one: {never}", fix, evaluated[0]))
    return problems


def _fix(metric: str, logged: Sequence[str]) -> str:
    """The fix for an unknown metric: the nearest known one, and the metrics that the recipe logs."""
    near = nearest(metric, logged, NEAR)
    listed = ", ".join(logged[:LISTED]) + (f" and {len(logged) - LISTED} more" if len(logged) > LISTED else "")
    return f"did you mean {near}? This recipe logs {listed}" if near else f"choose one that this recipe logs: {listed}"


NEAR = 0.7
"""Least likeness of a suggested metric, so that ``eval_loss`` is not suggested for ``eval_bleu``."""
LISTED = 30
"""Metrics that a message lists."""
OF_STEPS = ("loss", "grad_norm", "lr", "memory_mib", "mfu")
"""Metrics of training lines, besides rates and losses by source."""


def _is_step_metric(name: str, steps: Sequence[str]) -> bool:
    return name in steps or name.endswith("_per_second") or name.startswith("loss/")


_REMEDY = "set trainer.eval_every to a number of steps or to epoch, or leave this out"


def _no_evaluation(trainer: TrainerConfig, data: DataConfig) -> str:
    """Reason why no evaluation runs before the end; empty if one does."""
    if data.eval_source is None and data.held_out == 0 and not data.eval_sets:
        return "there is no held-out data (data.held_out is 0)"
    if trainer.eval_every is None:
        return "trainer.eval_every is null, so no evaluation runs before the end"
    if trainer.max_steps is not None and _first_common_step(trainer.eval_every, 1) > trainer.max_steps:
        return f"trainer.eval_every={trainer.eval_every} is greater than trainer.max_steps ({trainer.max_steps})"
    return ""


def _idle_rotation(checkpoint: CheckpointConfig, trainer: TrainerConfig, callbacks: Mapping[str, Any]) -> list[Problem]:
    """The problem of ``keep_best`` if no checkpoint before the end is written at an evaluated step."""
    if not checkpoint.keep_best:
        return []
    why = ""
    saves_best = any(isinstance(callback, BestModel) for callback in callbacks.values())
    own = any(not type(callback).__module__.startswith("trireme.") for callback in callbacks.values())
    if trainer.eval_every is None:
        why = "ranks checkpoints by evaluations, but trainer.eval_every is null, so no evaluation runs before the end"
    elif saves_best or own:  # they may save at any step
        return []
    elif checkpoint.every is None:
        why = "ranks checkpoints, but checkpoint.every is null, so no checkpoint is written before the end"
    elif trainer.max_steps is not None and _first_common_step(checkpoint.every, trainer.eval_every) > trainer.max_steps:
        why = (
            f"ranks checkpoints of evaluated steps, but no step has both: checkpoint.every={checkpoint.every} and "
            f"trainer.eval_every={trainer.eval_every} have no common multiple up to {trainer.max_steps} steps"
        )
    fix = "set both to the same number, add the callback best_model, or set checkpoint.keep_best=0"
    return [Problem("checkpoint.keep_best", why, fix, checkpoint.keep_best)] if why else []


def _first_common_step(*cadences: Every) -> int:
    """First step at which all cadences are due; 1 if that depends on the length of a pass."""
    steps = [every for every in cadences if isinstance(every, int)]
    return math.lcm(*steps) if len(steps) == len(cadences) else 1


def _known_metrics(task: Any, callbacks: Mapping[str, Any], data: DataConfig, scores: Sequence[str]) -> set[str]:
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
