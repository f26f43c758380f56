"""Check a recipe's run folder, cache folder, number of steps, intervals (``every``), and data for evaluations."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import Problem
from ..trainer.check_steps import check_steps
from ..trainer.checkpoint.checkpoint_config import CheckpointConfig
from ..trainer.data.data_config import DataConfig
from ..trainer.folders import folder_problem, name_problem
from ..trainer.schedules import ScheduleConfig
from ..trainer.settings import RunConfig, TrainerConfig


def check_folders(run: RunConfig, data: DataConfig) -> list[Problem]:
    """Problems of writing the run folder and of creating the cache."""
    found = [("run.dir", run.dir, folder_problem(Path(run.dir)))]
    variable = os.environ.get("TRIREME_CACHE")
    cache = Path(os.path.expanduser(data.cache_dir or variable or "~/.cache/trireme"))
    if not os.path.isdir(cache):  # an existing cache may be complete, and is then only read
        field = "TRIREME_CACHE" if variable and not data.cache_dir else "data.cache_dir"
        why = name_problem(str(cache)).partition("; ")[0] or folder_problem(cache)
        found.append((field, str(cache), why))
    return [Problem(field, why, f"give another folder as {field}", path) for field, path, why in found if why]


def check_length(
    trainer: TrainerConfig, checkpoint: CheckpointConfig, data: DataConfig, scheduler: ScheduleConfig
) -> list[Problem]:
    """Problems of the number of steps, and of intervals that a stream cannot have."""
    problems = []
    if data.streaming and trainer.max_steps is None:
        problems.append(
            Problem(
                "trainer.max_steps",
                "is needed with data.streaming=true, since epochs cannot be counted on a stream",
                "set trainer.max_steps and trainer.epochs=null",
            )
        )
    problems += _check_cadences(trainer, checkpoint, data)
    if trainer.max_steps is not None:
        problems += check_steps(trainer, scheduler, trainer.max_steps)
    return problems


def _check_cadences(trainer: TrainerConfig, checkpoint: CheckpointConfig, data: DataConfig) -> list[Problem]:
    """Problems of intervals of one epoch, which streamed data does not have."""
    cadences = {
        "trainer.log_every": trainer.log_every,
        "trainer.eval_every": trainer.eval_every,
        "checkpoint.every": checkpoint.every,
    }
    why = "acts at the end of each epoch, but streamed data (data.streaming=true) has no epochs"
    return [
        Problem(key, why, f"give a number of steps, for example {key}=100", every)
        for key, every in cadences.items()
        if every == "epoch" and data.streaming
    ]


def check_evaluation(trainer: TrainerConfig, data: DataConfig) -> list[Problem]:
    """Problems of a recipe that asks for evaluations and has no data for them."""
    if data.eval_source is not None or data.held_out > 0 or data.eval_sets:
        return []
    why = "requests evaluations, but data.held_out is 0 and there is no data.eval_source"
    return [
        Problem(key, why, f"set data.held_out=0.05, or {key}={off}", value)
        for key, value, off in (
            ("trainer.eval_every", trainer.eval_every, "null"),
            ("trainer.eval_on_start", trainer.eval_on_start, "false"),
        )
        if value
    ]
