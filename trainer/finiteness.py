"""Watch a run for NaN and infinity: warn of the first step with such a loss or gradient, and of many skipped steps in a
row. At each save, tell whether the loss and the weights are finite.

The gradient norm is computed in every step and is equal on all ranks. On the CPU it is checked in every step. On a GPU,
reading the norm would delay every step, so the number of the first bad step is kept in a tensor on the device. That
tensor is read when metrics are logged, at an evaluation and at a save.

A skipped step leaves the weights unchanged. In fp16, steps are skipped until a loss scale is found, and the callback
``nonfinite`` reports its own skips; DeepSpeed's skips are reported here. Many skipped steps in a row are always
reported, since then nothing is trained.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh
    from ..parallel.strategy import StepLoss, StepResult, Strategy

log = logging.getLogger("trireme.trainer")
SKIPPED_IN_A_ROW = 20
"""Number of skipped steps in a row that is reported. A loss scale that begins at 2**16 reaches 1 after 16 skips."""
ADVICE = (
    "lower optimizer.lr, warm up longer or clip (trainer.max_grad_norm); the callback nonfinite skips such steps, "
    "stops or goes back (docs/faults.md)"
)


class Finiteness:
    """Watches one run. All ranks decide alike, since they look at numbers of all ranks."""

    def __init__(self, mesh: Mesh, strategy: Strategy) -> None:
        self.mesh, self.strategy = mesh, strategy
        self.begin()

    def begin(self) -> None:
        """Reset at the start of training, and after a rollback."""
        self.since: int | None = None
        """First step of the current sequence of steps whose loss or gradient is not finite."""
        self._skipped = 0
        self._loss: StepLoss | None = None
        self._first_bad: Tensor | None = None  # step, on the device; 0: none

    def step_done(self, step: int, loss: StepLoss, result: StepResult) -> None:
        """Note the gradient of a step; without a GPU, warn at once."""
        self._loss = loss
        self._skipped = self._skipped + 1 if result.skipped else 0
        if self._skipped == SKIPPED_IN_A_ROW:
            self._warn(
                "%d steps in a row were skipped, up to step %d, since their gradients were not finite: %s",
                *(self._skipped, step, ADVICE),
            )
        if result.skipped:
            expected = self.strategy.plan.precision == "fp16" or self.strategy.skip_nonfinite
            if self.since is None and not expected:
                self.since = step
                self._warn("step %d is skipped, since its gradient is not finite: %s", step, ADVICE)
            return
        if self.mesh.device.type == "cpu":
            self._judge(step, result.grad_norm.item(), "the norm of the gradient")
            return
        bad = (~result.grad_norm.isfinite()).long() * step
        self._first_bad = bad if self._first_bad is None else self._first_bad.where(self._first_bad > 0, bad)

    def look(self, step: int, loss: float | None = None) -> None:
        """Read the first bad step from the device; ``loss``: mean loss of the global batch at ``step``, if known."""
        if self._first_bad is not None:
            first = int(self._first_bad)
            self._judge(first, math.nan if first else 0.0, "the norm of the gradient")
        self._first_bad = None
        if loss is not None and not self._skipped and not math.isfinite(loss):
            self._judge(step, loss, "the loss")

    def verdict(self, evaluated: float | None) -> str:
        """A description of values that are not finite now; empty if all are. Equal on all ranks; a collective call.

        Args:
            evaluated: the held-out loss of this step, if there is one.
        """
        sound = self.strategy.weights_are_finite()
        if self.mesh.any_flags([not sound])[0]:
            found = "the weights are not finite"
        elif evaluated is not None:
            found = "" if math.isfinite(evaluated) else f"the held-out loss is {evaluated}"
        elif self._loss is None or self._skipped == 1:  # one bad batch does not mean bad weights
            found = ""
        else:
            mean = self.strategy.global_loss(self._loss)
            found = "" if math.isfinite(mean) else f"the loss is {mean}"
        return f"{found} (since step {self.since})" if found and self.since else found

    def _judge(self, step: int, value: float, what: str) -> None:
        if math.isfinite(value):
            self.since = None
        elif self.since is None:
            self.since = step
            self._warn("step %d: %s is not finite (%s): %s", step, what, value, ADVICE)

    def _warn(self, message: str, *details: object) -> None:
        if self.mesh.is_main:
            log.warning(message, *details)
