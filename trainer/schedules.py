"""Learning rate schedules as pure functions of the step, so that they have no state to save.

The formulas give exactly the same values as ``transformers.optimization``. They are written out here because
transformers only offers them as schedulers of an optimizer, and ``trireme check`` evaluates a schedule without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import Problem, UserError, refuse
from .component import Component, NestedFailed, instantiate, locate
from .component_errors import place_in

Schedule = Callable[[int], float]
"""Step (0 for the first optimizer step) -> factor of the base learning rate."""

OPTIONS = {
    "cosine": {"min_lr_ratio", "num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "polynomial": {"min_lr_ratio", "power"},
    "warmup_stable_decay": {"min_lr_ratio", "decay_ratio", "decay_type"},
}
"""Schedule -> options that it takes besides warm-up."""
OWN = "scheduler.factor"
DECAY_RATIO = 0.1
"""Default of ``decay_ratio`` for warmup_stable_decay."""


@dataclass
class ScheduleConfig:
    """Schedule of the learning rate. Options that a schedule does not take must stay null."""

    ALTERNATIVES: ClassVar = (("warmup_steps", "warmup_ratio"),)
    name: Literal[
        "constant",
        "constant_with_warmup",
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
        "own",
    ] = "cosine"
    """Name of the schedule: the shape of the learning rate after the warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; or give ``warmup_ratio`` instead."""
    warmup_ratio: float | None = None
    """Linear warm-up as a share of ``max_steps``."""
    min_lr_ratio: float | None = None
    """Lowest learning rate as a share of the base learning rate."""
    num_cycles: float | None = None
    """Waves of ``cosine`` after the warm-up (0.5 falls once), or number of restarts of ``cosine_with_restarts``."""
    power: float | None = None
    """Exponent of ``polynomial`` (1 is linear)."""
    decay_ratio: float | None = None
    """Length of the final decay of ``warmup_stable_decay``, as a share of ``max_steps``; null takes 0.1."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    """Shape of the final decay of ``warmup_stable_decay``; null takes linear."""
    factor: Component | None = None
    """Your own class or function, for ``own``. It is called with ``max_steps`` and its arguments here, and gives a
    function from a step (0 for the first one) to the factor of the base learning rate; the warm-up goes before it."""

    def __post_init__(self) -> None:
        refuse([*self._unused(), *self._ranges(), *self._contradictions()])

    def _contradictions(self) -> Iterator[str]:
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            yield f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio} contradict; set one to null"
        if self.name == "constant" and (self.warmup_steps or self.warmup_ratio):
            yield "name='constant' has no warm-up; use constant_with_warmup"
        if self.name == "own" and self.factor is None:
            yield "factor is required by own; set scheduler.factor._target_=package.module.Name"
        if self.name != "own" and self.factor is not None:
            yield f"factor is not an option of {self.name}; set scheduler=own"

    def _unused(self) -> list[str]:
        """Problems of options that the schedule does not take."""
        problems = []
        for name in ("min_lr_ratio", "num_cycles", "power", "decay_ratio", "decay_type"):
            if getattr(self, name) is not None and name not in OPTIONS.get(self.name, set()):
                takers = " and ".join(key for key, options in OPTIONS.items() if name in options)
                problems.append(
                    f"{name}={getattr(self, name)!r} is not an option of {self.name}; leave it out, or use {takers}"
                )
        return problems

    def _ranges(self) -> list[str]:
        problems = []
        for name in ("warmup_ratio", "min_lr_ratio", "decay_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                problems.append(f"{name}={value} must lie between 0 and 1; it is a share")
        for name, usual in (("num_cycles", 0.5 if self.name == "cosine" else 1), ("power", 1)):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                problems.append(
                    f"{name}={value} must be positive and finite; set scheduler.{name}={usual}, or use "
                    "scheduler=constant_with_warmup for a rate that stays"
                )
        if self.warmup_steps is not None and self.warmup_steps < 0:
            problems.append(f"warmup_steps={self.warmup_steps} must not be negative; 0 is no warm-up")
        restarts = self.num_cycles if self.name == "cosine_with_restarts" else None
        if restarts is not None and 0 < restarts < math.inf and restarts != int(restarts):
            near = max(int(restarts), 1)
            problems.append(f"num_cycles={restarts} is not whole, so the run would end amid a fall; use {near}")
        decay = self.decay_ratio if self.decay_ratio is not None else DECAY_RATIO
        if self.name == "warmup_stable_decay" and 0 <= decay <= 1 and (self.warmup_ratio or 0.0) + decay > 1:
            problems.append(
                f"warmup_ratio={self.warmup_ratio} and decay_ratio={decay} make more than the whole run; "
                "use shares that add up to at most 1"
            )
        return problems

    def warmup(self, max_steps: int) -> int:
        """Warm-up in steps. A share is rounded up, as in transformers."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return math.ceil(max_steps * self.warmup_ratio) if self.warmup_ratio is not None else 0

    def decay(self, max_steps: int) -> int:
        """Steps of the final decay of ``warmup_stable_decay``."""
        return round((self.decay_ratio if self.decay_ratio is not None else DECAY_RATIO) * max_steps)


def build_schedule(config: ScheduleConfig, max_steps: int) -> Schedule:
    """The factor of the learning rate as a function of the step."""
    warmup = config.warmup(max_steps)
    after = _AFTER_WARMUP[config.name](config, warmup, max_steps)
    # warmup_stable_decay warms up from its lowest rate, the others from 0.
    floor = (config.min_lr_ratio or 0.0) if config.name == "warmup_stable_decay" else 0.0

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup) * (1.0 - floor) + floor
        return after(step)

    return factor


def _own(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    """The user's function of the step.

    Raises:
        UserError: it is no function, raises, or does not give a number.
    """
    component = config.factor or {}
    made = _called(component, lambda: instantiate(component, max_steps), locate(component["_target_"]))
    if not callable(made):
        raise _no_schedule(component, f"gives a {type(made).__name__}, not a function")

    def factor(step: int) -> float:
        value = _called(component, lambda: made(step), made)
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise _no_schedule(component, f"gives {value!r} at step {step}, which is not a number")
        return float(value)

    return factor


def _called(component: Component, call: Callable[[], Any], target: Any) -> Any:
    """The result of the user's code, whose exceptions name the key and the line."""
    try:
        return call()
    except NestedFailed as error:
        raise UserError(error.problem(OWN)) from error
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise _no_schedule(component, f"raises {text}{place_in(target, error)}") from error


def _no_schedule(component: Component, why: str) -> UserError:
    fix = "give a function from a step to a number; docs/extending.md has an example"
    return UserError(Problem(f"{OWN}._target_", why, fix, component["_target_"]))


def _constant(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    return lambda step: 1.0


def _linear(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    return lambda step: max(0.0, (max_steps - step) / max(1, max_steps - warmup))


def _cosine(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    floor = config.min_lr_ratio if config.min_lr_ratio is not None else 0.0
    waves = config.num_cycles if config.num_cycles is not None else 0.5

    def factor(step: int) -> float:
        progress = (step - warmup) / max(1, max_steps - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * float(waves) * 2.0 * progress)) * (1 - floor) + floor)

    return factor


def _cosine_with_restarts(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    restarts = int(config.num_cycles) if config.num_cycles is not None else 1

    def factor(step: int) -> float:
        progress = (step - warmup) / max(1, max_steps - warmup)
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((restarts * progress) % 1.0))))

    return factor


def _polynomial(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    floor = config.min_lr_ratio if config.min_lr_ratio is not None else 1e-7
    power = config.power if config.power is not None else 1.0

    def factor(step: int) -> float:
        left = 1 - (step - warmup) / max(1, max_steps - warmup)
        return (1.0 - floor) * max(0.0, left) ** power + floor

    return factor


def _inverse_sqrt(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    scale = warmup if warmup > 0 else 10_000
    return lambda step: 1.0 / math.sqrt((step + scale - warmup) / scale)


def _warmup_stable_decay(config: ScheduleConfig, warmup: int, max_steps: int) -> Schedule:
    floor = config.min_lr_ratio if config.min_lr_ratio is not None else 0.0
    decay = config.decay(max_steps)
    shape = _DECAYS[config.decay_type if config.decay_type is not None else "linear"]

    def factor(step: int) -> float:
        progress = (step - (max_steps - decay)) / max(1, decay)
        if progress < 0:
            return 1.0
        return max(0.0, shape(progress) * (1.0 - floor) + floor) if progress < 1 and decay else floor

    return factor


_AFTER_WARMUP: dict[str, Callable[[ScheduleConfig, int, int], Schedule]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
    "own": _own,
}
_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "1-sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
