"""Learning rate schedules as pure functions of the step, so that nothing of them needs saving.

The formulas are those of ``transformers.optimization``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import refuse

Schedule = Callable[[int], float]
"""Step (0 for the first optimizer step) -> factor of the base learning rate."""

TRANSFORMERS_NAME = {
    "constant": "constant",
    "constant_with_warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine_with_min_lr",
    "cosine_with_restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "warmup_stable_decay",
}
OPTIONS = {
    "cosine": {"min_lr_ratio", "num_cycles"},
    "cosine_with_restarts": {"num_cycles"},
    "polynomial": {"min_lr_ratio", "power"},
    "warmup_stable_decay": {"min_lr_ratio", "decay_ratio", "decay_type"},
}
"""Options that a schedule takes beside warm-up."""


@dataclass
class ScheduleConfig:
    """The learning rate over the run. Options that a schedule does not take must stay null."""

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
    ] = "cosine"
    """Shape after the warm-up."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; or give ``warmup_ratio``."""
    warmup_ratio: float | None = None
    """Warm-up as a share of ``max_steps``."""
    min_lr_ratio: float | None = None
    """Lowest learning rate as a share of the base one."""
    num_cycles: float | None = None
    """cosine: waves after the warm-up (0.5 falls once); cosine_with_restarts: number of restarts."""
    power: float | None = None
    """polynomial: exponent (1 is linear)."""
    decay_ratio: float | None = None
    """warmup_stable_decay: share of ``max_steps`` spent in the final decay."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    """warmup_stable_decay: shape of the final decay."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        for name in ("min_lr_ratio", "num_cycles", "power", "decay_ratio", "decay_type"):
            if getattr(self, name) is not None and name not in OPTIONS.get(self.name, set()):
                takers = ", ".join(key for key, options in OPTIONS.items() if name in options)
                yield (f"{name}={getattr(self, name)} is not an option of {self.name}; only {takers} takes it")
        if self.warmup_steps is not None and self.warmup_ratio is not None:
            yield (f"warmup_steps={self.warmup_steps} and warmup_ratio={self.warmup_ratio} contradict; set one to null")
        if self.name == "constant" and (self.warmup_steps or self.warmup_ratio):
            yield "name='constant' has no warm-up; use constant_with_warmup"
        for name in ("warmup_ratio", "min_lr_ratio", "decay_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                yield f"{name}={value} must lie between 0 and 1"
        if self.warmup_steps is not None and self.warmup_steps < 0:
            yield f"warmup_steps={self.warmup_steps} must not be negative"

    def warmup(self, max_steps: int) -> int:
        """Warm-up in steps."""
        return self.warmup_steps if self.warmup_steps is not None else round((self.warmup_ratio or 0.0) * max_steps)


def build_schedule(config: ScheduleConfig, max_steps: int) -> Schedule:
    """The factor as a function of the step alone."""
    import torch
    from transformers.optimization import get_scheduler

    # transformers hands out its formulas inside schedulers; a unit optimizer gives access to the bare function.
    unit = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    warmup = config.warmup(max_steps)
    needs_warmup = config.name != "constant"
    scheduler: Any = get_scheduler(
        TRANSFORMERS_NAME[config.name],
        unit,
        num_warmup_steps=warmup if needs_warmup else None,
        num_training_steps=max_steps
        if config.name not in ("constant", "constant_with_warmup", "inverse_sqrt")
        else None,
        scheduler_specific_kwargs=_options(config, max_steps),
    )
    return scheduler.lr_lambdas[0]


def _options(config: ScheduleConfig, max_steps: int) -> dict[str, Any]:
    floor = config.min_lr_ratio or 0.0
    match config.name:
        case "cosine":
            return {"min_lr_rate": floor, "num_cycles": config.num_cycles or 0.5}
        case "cosine_with_restarts":
            return {"num_cycles": int(config.num_cycles or 1)}
        case "polynomial":
            return {"lr_end": floor or 1e-7, "power": config.power or 1.0}
        case "warmup_stable_decay":
            decay = round((0.1 if config.decay_ratio is None else config.decay_ratio) * max_steps)
            return {"num_decay_steps": decay, "min_lr_ratio": floor, "decay_type": config.decay_type or "linear"}
    return {}
