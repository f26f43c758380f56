"""Unit tests of the callback ``nonfinite``, which acts when the gradient is NaN or infinite: it skips steps, stops or
rolls back the run, and refuses to save damaged weights.

tests/dist/test_nonfinite.py tests the callback in whole runs.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from trireme.errors import UserError
from trireme.trainer.callbacks.nonfinite import NonFinite


def step(run, guard: NonFinite, norm: float, skipped: bool = False, precision: str = "fp32") -> None:
    """End a step whose gradient has this norm."""
    trainer = run.trainer
    trainer.recipe.plan = SimpleNamespace(precision=precision)
    trainer.mesh.gather_objects = lambda value: [value]
    run.state.step += 1
    trainer.batch = SimpleNamespace(samples=[10 * run.state.step, 10 * run.state.step + 1])
    trainer.loss = SimpleNamespace(total=torch.tensor(norm))
    trainer.result = SimpleNamespace(grad_norm=torch.tensor(norm), skipped=skipped)
    run.fire("on_step_end", guard)


@pytest.fixture
def begun(run):
    def begin(**options) -> NonFinite:
        guard = NonFinite(**options)
        run.fire("on_train_begin", guard)
        return guard

    return begin


def test_the_first_bad_step_is_named_though_it_is_checked_later(run, begun) -> None:
    guard = begun(action="stop", every=4)
    step(run, guard, 1.0)
    step(run, guard, float("nan"))
    step(run, guard, float("inf"))
    with pytest.raises(UserError, match=r"step 2 is not finite \(samples 20, 21\)"):
        step(run, guard, 1.0)


def test_an_unplanned_save_of_bad_weights_is_refused(run, begun) -> None:
    guard = begun(action="rollback", every=100)
    step(run, guard, 1.0)
    run.fire("on_pre_save", guard)
    step(run, guard, float("nan"))
    assert not run.control.rollback
    with pytest.raises(UserError, match="the checkpoint is not written"):
        run.fire("on_pre_save", guard)


def test_a_rollback_is_requested_and_its_count_survives_the_rollback(run, begun) -> None:
    guard = begun(action="rollback", every=1)
    saved = guard.state_dict()
    step(run, guard, float("nan"))
    assert run.control.rollback
    guard.load_state_dict(saved)
    assert guard.rollbacks == 1


def test_only_skipped_steps_in_a_row_count(run, begun) -> None:
    guard = begun(patience=1)
    for norm in (float("nan"), 1.0, float("nan"), 1.0):
        step(run, guard, norm, skipped=norm != norm)
    assert (guard.skipped, guard.in_a_row) == (2, 0)
    assert run.trainer.strategy.skip_nonfinite
    step(run, guard, float("nan"), skipped=True)
    with pytest.raises(UserError, match="2 steps in a row were skipped"):
        step(run, guard, float("nan"), skipped=True)


def test_overflows_of_a_loss_scale_do_not_stop_a_run(run, begun) -> None:
    guard = begun(action="stop", every=1, patience=2)
    step(run, guard, float("inf"), skipped=True, precision="fp16")
    step(run, guard, float("inf"), skipped=True, precision="fp16")
    run.fire("on_pre_save", guard)
    with pytest.raises(UserError, match="3 steps in a row"):
        step(run, guard, float("inf"), skipped=True, precision="fp16")


@pytest.mark.parametrize("options", [{"action": "pray"}, {"patience": 0}, {"every": 0}, {"max_rollbacks": -1}])
def test_wrong_arguments_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NonFinite(**options)
