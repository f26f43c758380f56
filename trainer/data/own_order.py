"""Let a user's own function decide the order of the training samples (``data.order``), for example for a curriculum or
weighted sampling, and check its results.

The order is a function from positions in the endless stream of training samples to sample indices. It is called with
many positions at once. It depends on nothing else, so any parallelism plan gets the same order, and a resume needs no
saved state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import Problem, UserError
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from .open_collator import taken

ORDER = "data.order"
CONTRACT = "see docs/extending.md: an order is called with positions, and gives an index below size for each"


class OwnOrder:
    """Calls a user's order, and checks its results."""

    def __init__(
        self, component: Component, size: int, seed: int, batch: int, rows: Any = None, counts_on: bool = False
    ) -> None:
        """
        Args:
            batch: samples of a step.
            counts_on: see ``sample_order.EpochOrder``.

        Raises:
            UserError: the order is not usable.
        """
        self.name, self.size, self.counts_on = component["_target_"], size, counts_on
        target = locate(self.name)
        given = {"size": size, "seed": seed, "global_batch_size": batch, "rows": rows}
        with component_errors(ORDER, target, CONSTRUCTOR):
            self.order: Callable[[np.ndarray], Any] = instantiate(component, **taken(target, given))
        if not callable(self.order):
            raise UserError(self._wrong(f"gives {type(self.order).__name__}, which cannot be called with positions"))
        tried = np.arange(min(size, 64), dtype=np.int64)
        tried = np.concatenate([tried, tried + size])  # of two passes
        if not np.array_equal(self(tried), self(tried)):
            raise UserError(self._wrong("gives other indices when it is called again; draw from (seed, position)"))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Dataset indices (int64) at ``positions`` (int64, any shape)."""
        positions = np.asarray(positions, np.int64)
        with component_errors(ORDER, self.order, "__call__"):
            found = np.asarray(self.order(positions))
        if found.shape != positions.shape or found.dtype.kind not in "iu":
            what = f"{found.dtype} of shape {found.shape}"
            raise UserError(self._wrong(f"gives {what} for positions of shape {positions.shape}, not whole numbers"))
        if found.size and not 0 <= found.min() <= found.max() < self.size:
            many = f"{self.size} samples, numbered from 0"
            raise UserError(self._wrong(f"gives indices from {found.min()} to {found.max()}, but there are {many}"))
        found = found.astype(np.int64)
        return found + positions // self.size * self.size if self.counts_on else found

    def _wrong(self, why: str) -> Problem:
        return Problem(ORDER, why, CONTRACT, self.name)
