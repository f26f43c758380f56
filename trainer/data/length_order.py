"""Order samples so that the samples of a training step have similar lengths, which reduces padding.

The samples of an epoch are divided into windows of many steps. The samples of a window are sorted by length and divided
into steps, and the order of the steps is random, so lengths do not rise or fall during training. Like ``EpochOrder``,
the order is a function of (seed, epoch, index). It also depends on the global batch size, because this size decides
which samples form a step.
"""

from __future__ import annotations

import numpy as np

from .sample_order import EpochOrder, permute

STEPS = 64
"""Steps of a window: enough that neighbours in length are close, few enough that a pass is mixed well."""


class LengthOrder(EpochOrder):
    """Maps global sample positions to dataset indices; the samples of a step are of similar length."""

    def __init__(self, lengths: np.ndarray, seed: int, shuffle: bool, step: int, steps: int = STEPS) -> None:
        """
        Args:
            lengths: [samples], in any unit.
            step: samples of a global batch.
            steps: steps of a window.
        """
        super().__init__(len(lengths), seed, shuffle)
        self.lengths, self.step, self.steps = lengths, step, steps
        self._last: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0, np.int64))

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.size
        windows = positions // self.step - epochs * self.size // self.step
        windows //= self.steps
        found = np.empty_like(positions)
        for epoch, window in {*zip(epochs.ravel().tolist(), windows.ravel().tolist(), strict=True)}:
            chosen = (epochs == epoch) & (windows == window)
            first, order = self._window(epoch, window)
            found[chosen] = order[positions[chosen] - first]
        return found

    def _window(self, epoch: int, window: int) -> tuple[int, np.ndarray]:
        """First position of a window, and the samples of its positions. Steps begin at multiples of the batch size in
        the endless stream, so only a part of the first and of the last step may belong to this pass."""
        begin, end = epoch * self.size, (epoch + 1) * self.size
        number = begin // self.step + window * self.steps  # of the first step
        edges = np.clip(np.arange(number, number + self.steps + 1) * self.step, begin, end)
        first = int(edges[0])
        if self._last[0] != (epoch, window):
            self._last = (epoch, window), self._dealt(first, np.diff(edges), epoch, window)
        return first, self._last[1]

    def _dealt(self, first: int, sizes: np.ndarray, epoch: int, window: int) -> np.ndarray:
        samples = super().__call__(np.arange(first, first + int(sizes.sum())))
        samples = samples[np.argsort(-self.lengths[samples], kind="stable")]
        turns = np.arange(self.steps)
        if self.shuffle:
            turns = permute(turns, self.steps, self.seed, epoch, window)
        ends = np.cumsum(sizes[turns])
        parts = {int(turn): samples[end - sizes[turn] : end] for turn, end in zip(turns, ends, strict=True)}
        return np.concatenate([parts[turn] for turn in range(self.steps)])
