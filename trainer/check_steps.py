"""Check the recipe options that depend on the run's number of steps: ``stop_at``, warm-up, learning rate schedule.

The number is in the recipe, or it follows from the number of epochs once the data has been read.
"""

from __future__ import annotations

import math

from ..errors import Problem, UserError
from .schedules import OWN, ScheduleConfig, build_schedule
from .settings import TrainerConfig

MOST_READ = 5000
"""Most steps at which a schedule is evaluated; in a longer run they are evenly spread, and the last steps added."""


def check_steps(trainer: TrainerConfig, scheduler: ScheduleConfig, max_steps: int) -> list[Problem]:
    """Problems of options that count steps in a run of ``max_steps``, and of its schedule."""
    if trainer.max_steps is not None:
        run, raised = f"trainer.max_steps ({max_steps})", "raise trainer.max_steps"
    else:
        run, raised = f"the {max_steps} steps that trainer.epochs={trainer.epochs:g} makes", "raise trainer.epochs"
    problems = [
        Problem(key, f"lies beyond {run}", f"use at most {max_steps}, or {raised}", value)
        for key, value in (("trainer.stop_at", trainer.stop_at), ("scheduler.warmup_steps", scheduler.warmup_steps))
        if value is not None and value > max_steps
    ]
    warmup, decay = scheduler.warmup(max_steps), scheduler.decay(max_steps)
    if scheduler.name == "warmup_stable_decay" and warmup <= max_steps < warmup + decay - 1:  # both round
        why = f"leaves {max_steps - warmup} steps of {run} for a decay of {decay}"
        problems.append(Problem("scheduler", why, "shorten the warm-up, or lower scheduler.decay_ratio"))
    return problems or _check_values(scheduler, max_steps)


def _check_values(scheduler: ScheduleConfig, max_steps: int) -> list[Problem]:
    stride = max(max_steps // MOST_READ, 1)
    steps = [*range(0, max_steps, stride), *range(max(max_steps - 3, 0), max_steps)]
    try:
        factor = build_schedule(scheduler, max_steps)
        wrong = next((step for step in steps if not 0 <= factor(step) < math.inf), None)
        why = "" if wrong is None else f"gives {factor(wrong)} times the learning rate at step {wrong}"
    except UserError as error:
        return [each for each in error.problems if isinstance(each, Problem)]
    except (ValueError, OverflowError, ZeroDivisionError) as error:
        why = f"gives no number over {max_steps} steps: {error}"
    if not why:
        return []
    if scheduler.factor:
        return [Problem(f"{OWN}._target_", why, "give finite numbers from 0 on", scheduler.factor["_target_"])]
    return [Problem("scheduler", why, "use usual values: see docs/recipes.md", scheduler.name)]
