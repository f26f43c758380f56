"""After each step, share requests such as "save" or "stop" between ranks (if one rank makes a request, all follow it),
and complete a checkpoint when all ranks have written their part.

Requests come from callbacks and signals, and may differ between ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Trainer


FLAGS = ("save", "evaluate", "log", "rollback", "end_pass", "interrupted", "prune")
"""Requests that all ranks follow if any rank makes them."""


def agree(trainer: Trainer) -> None:
    """Agree on ``trainer.control`` after a step, and complete a checkpoint once no rank is writing it; a collective
    call."""
    control, mesh = trainer.control, trainer.mesh
    trainer.leaving.heed(control)
    own = control.interrupted
    *asked, stop, writing = mesh.any_flags(
        [*(getattr(control, name) for name in FLAGS), control.stop, trainer.store.writing]
    )
    if stop and not control.stop:
        control.request_stop("another rank asked to stop")
    for name, flag in zip(FLAGS, asked, strict=True):
        setattr(control, name, flag)
    if control.prune and not control.stop:
        control.request_stop("a callback has pruned it")
    if control.interrupted:
        # A cluster's scheduler may not wait for an evaluation: save now, evaluate after the resume.
        trainer.state.evaluation_due |= control.evaluate
        control.evaluate, control.save = False, True
        reasons = mesh.gather_objects(control.reason if own else "")
        control.reason = next((reason for reason in reasons if reason), control.reason)
    if not writing:
        with trainer.clock.paused():
            trainer.saving.end()
