"""Make the requests of any rank those of all ranks, once per step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Trainer


def agree(trainer: Trainer) -> None:
    """Agree on ``trainer.control`` after a step, and complete a checkpoint once no rank is writing it; a collective
    call."""
    control, mesh = trainer.control, trainer.mesh
    trainer.leaving.heed(control)
    own = control.interrupted
    asked = [control.stop, control.save, control.evaluate, control.log, control.rollback, control.interrupted]
    *asked, writing = mesh.any_flags([*asked, trainer.store.writing])
    if asked[0] and not control.stop:
        control.request_stop("another rank asked to stop")
    control.save, control.evaluate, control.log, control.rollback, control.interrupted = asked[1:]
    if control.interrupted:
        # A scheduler may not wait for an evaluation: save now, evaluate after the resume.
        trainer.state.evaluation_due, control.evaluate, control.save = control.evaluate, False, True
        reasons = mesh.gather_objects(control.reason if own else "")
        control.reason = next((reason for reason in reasons if reason), control.reason)
    if not writing:
        with trainer.clock.paused():
            trainer.saving.end()
