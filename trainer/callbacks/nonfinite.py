"""NaN guard callback: skip the step, stop the run, or roll back when the gradient is NaN or infinite.

``skip``: the optimizer step is not made, so weights and moments stay unchanged. The decision must be made before the
step, so on a GPU each step waits for the gradient norm (as fp16 training does for its loss scale).

``stop``: the run ends with exit code 2 and a message that names the step and its samples; damaged weights are never
saved. ``rollback``: the run restores the last checkpoint, and continues with new samples: those after the step at which
the bad gradient was detected. Both check the norm every ``every`` steps and before each evaluation and save. Between
two checks, the number of the first bad step is kept in a tensor on the device, so no step waits for the GPU.

The norm is that of the *global* gradient, which every rank knows, so all ranks make the same decision. DeepSpeed's
ZeRO always skips such steps itself; ``stop`` and ``rollback`` then find weights that are still finite. In fp16,
overflows are how the loss scale is found, so they are skipped under every action, at most ``patience`` in a row.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Literal

from ...errors import Problem, UserError
from .callback import Callback

if TYPE_CHECKING:
    from torch import Tensor

    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger("trireme.trainer")
Action = Literal["skip", "stop", "rollback"]


class NonFinite(Callback):
    """Acts when the norm of the gradient is NaN or infinite.

    Args:
        action: skip the step, stop the run, or roll back to the last checkpoint.
        patience: number of steps in a row that may be skipped before the run stops (for ``skip``, and in fp16).
        every: steps between two checks of the norm (for ``stop`` and ``rollback``).
        max_rollbacks: number of rollbacks before the run stops (for ``rollback``).
    """

    def __init__(self, action: Action = "skip", patience: int = 10, every: int = 10, max_rollbacks: int = 3) -> None:
        if action not in ("skip", "stop", "rollback"):
            raise ValueError(f"action={action!r} is not known; write skip, stop or rollback")
        for name, value, least in (("patience", patience, 1), ("every", every, 1), ("max_rollbacks", max_rollbacks, 0)):
            if value < least:
                raise ValueError(f"{name}={value} is below {least}; use {least} or more")
        self.action, self.patience, self.every, self.max_rollbacks = action, patience, every, max_rollbacks
        self.skipped = self.in_a_row = self.rollbacks = 0
        self._first_bad: Tensor | None = None  # step, on the device; 0: none
        self._recent: deque[tuple[int, list[int], Tensor]] = deque(maxlen=every)

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self.action == "skip":
            trainer.strategy.skip_nonfinite = True
        self._first_bad = None
        self._recent.clear()

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        assert trainer.batch is not None and trainer.loss is not None and trainer.result is not None
        self._recent.append((state.step, trainer.batch.samples, trainer.loss.total))
        norm = trainer.result.grad_norm
        if self.action == "skip" or trainer.recipe.plan.precision == "fp16":
            self._count(trainer, state.step, trainer.result.skipped, norm)
            return
        bad = (~norm.isfinite()).long() * state.step
        self._first_bad = bad if self._first_bad is None else self._first_bad.where(self._first_bad > 0, bad)
        if control.stop or control.evaluate or control.save or state.step % self.every == 0:
            self._act_on_bad_step(trainer, control)

    def on_pre_save(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Prevent a save of bad weights, if it was requested after the last check of the norm (by a signal)."""
        step = 0 if self._first_bad is None else int(self._first_bad)
        if step:
            raise self._refusal(trainer, step, "the checkpoint is not written, those before it are untouched")

    def _count(self, trainer: Trainer, step: int, skipped: bool, norm: Tensor) -> None:
        if not skipped:
            self.in_a_row = 0
            return
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        trainer.extra_metrics["skipped_steps"] = self.skipped
        fp16 = trainer.recipe.plan.precision == "fp16"  # in fp16 skips are how a loss scale is found
        log.log(logging.INFO if fp16 else logging.WARNING, "step %d is skipped: gradient norm %s", step, norm.item())
        if self.in_a_row > self.patience:
            raise self._refusal(trainer, step, f"{self.in_a_row} steps in a row were skipped")

    def _act_on_bad_step(self, trainer: Trainer, control: Control) -> None:
        step = int(self._first_bad) if self._first_bad is not None else 0
        if not step:
            return
        if self.action == "stop":
            raise self._refusal(trainer, step, "nothing was saved since")
        if self.rollbacks == self.max_rollbacks:
            raise self._refusal(trainer, step, f"the run has gone back {self.rollbacks} time(s) already")
        self.rollbacks += 1
        log.warning("the gradient of step %d is not finite%s", step, self._named_samples(trainer, step))
        control.rollback = True

    def _refusal(self, trainer: Trainer, step: int, what: str) -> UserError:
        fix = "look at these samples, lower the learning rate, clip (trainer.max_grad_norm), or warm up longer"
        samples = self._named_samples(trainer, step)
        why = f"the gradient of step {step} is not finite{samples}; {what}"
        return UserError(Problem("callbacks.nonfinite", why, fix))

    def _named_samples(self, trainer: Trainer, step: int) -> str:
        """The samples of ``step`` on ranks whose own loss was not finite (else of all ranks); a collective call."""
        own = next(((samples, total) for at, samples, total in self._recent if at == step), None)
        mine = (own[0], math.isfinite(float(own[1]))) if own else ([], True)
        shares = trainer.mesh.gather_objects(mine)
        bad = [samples for samples, finite in shares if not finite] or [samples for samples, _ in shares]
        found = sorted({sample for samples in bad for sample in samples})
        if not found:
            return ""
        shown = ", ".join(map(str, found[:16])) + (f" and {len(found) - 16} more" if len(found) > 16 else "")
        return f" (samples {shown})"

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "rollbacks": self.rollbacks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # The larger value counts, since a rollback loads a state from before that rollback was counted.
        self.skipped = max(self.skipped, state["skipped"])
        self.rollbacks = max(self.rollbacks, state["rollbacks"])
