"""Save and restore the values that an optimizer changes in its ``param_groups`` during training.

Most optimizers keep all of their state by parameter. Prodigy and D-Adaptation keep their estimate of the step size in
the groups (``group["d"]``), and schedule-free optimizers keep a sum of weights there. Without these values, a resumed
run would start its estimates anew. The learning rate is not saved, since the schedule sets it in every step.
"""

from __future__ import annotations

from typing import Any

import torch

SET_HERE = ("params", "lr", "initial_lr")


class GroupValues:
    """The values that an optimizer has changed in its groups since it was built."""

    def __init__(self, optimizer: torch.optim.Optimizer, elsewhere: tuple[str, ...] = ()) -> None:
        """
        Args:
            elsewhere: names of values that the engine itself saves and loads.
        """
        self.optimizer, self._left_out = optimizer, {*SET_HERE, *elsewhere}
        self._first = [self._values(group) for group in optimizer.param_groups]

    def changed(self) -> list[dict[str, Any]]:
        """The changed values of each group; an empty list if nothing has changed."""
        found = [
            {key: value for key, value in self._values(now).items() if _differ(then.get(key), value)}
            for then, now in zip(self._first, self.optimizer.param_groups, strict=True)
        ]
        return found if any(found) else []

    def load(self, saved: list[dict[str, Any]]) -> None:
        """Set the values that ``changed`` returned.

        Raises:
            ValueError: the optimizer has other groups than the one that was saved.
        """
        groups = self.optimizer.param_groups
        if saved and len(saved) != len(groups):
            names = ", ".join(sorted({key for values in saved for key in values}))
            raise ValueError(
                f"its optimizer kept {names} in each of {len(saved)} parameter groups, and this plan and recipe make "
                f"{len(groups)} groups"
            )
        for group, values in zip(groups, saved, strict=False):
            for key, value in values.items():
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value

    def _values(self, group: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in group.items() if key not in self._left_out}


def _differ(then: Any, now: Any) -> bool:
    if isinstance(then, torch.Tensor) or isinstance(now, torch.Tensor):
        return then is not now or not isinstance(now, torch.Tensor)
    return then != now and not (then != then and now != now)  # NaN differs from itself
