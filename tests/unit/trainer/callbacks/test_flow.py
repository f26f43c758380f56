"""Tests of the callback ``flow``, which decides which steps are logged, evaluated and saved, and when a run ends."""

from __future__ import annotations

from trireme.trainer.callbacks.early_stopping import EarlyStopping
from trireme.trainer.callbacks.flow import Flow


def calendar(
    run, *, log_every=4, eval_every=None, eval_at_end=False, every=None, at_end=False, stop_at=None, eval_delay=0
):
    """Steps at which Flow requests a log line, an evaluation and a save, until it stops the run."""
    run.trainer.settings.log_every, run.trainer.settings.eval_every = log_every, eval_every
    run.trainer.settings.eval_delay, run.trainer.settings.global_batch_size = eval_delay, 4
    run.trainer.settings.eval_at_end = eval_at_end
    run.trainer.checkpoints.every, run.trainer.checkpoints.at_end = every, at_end
    run.state.stop_at = stop_at or run.state.max_steps
    seen = {"log": [], "evaluate": [], "save": []}
    flow = Flow()
    while not run.control.stop:
        run.state.step += 1
        run.state.samples = run.state.step * 4
        assert run.state.step <= run.state.max_steps, "nothing stopped the run"
        run.fire("on_step_end", flow)
        for name, steps in seen.items():
            if getattr(run.control, name):
                steps.append(run.state.step)
        run.control.clear()
    return seen


def test_regular_first_and_last_steps(run):
    seen = calendar(run, eval_every=3, every=4)
    assert seen == {"log": [1, 4, 8, 10], "evaluate": [3, 6, 9], "save": [4, 8]}
    assert "10 steps" in run.control.reason


def test_cadences_that_follow_passes(run):
    run.state.train_size = 10  # 2.5 steps of 4 samples
    seen = calendar(run, log_every="epoch", eval_every="epoch", every="epoch", eval_delay=2)
    assert seen == {"log": [1, 3, 5, 8, 10], "evaluate": [5, 8, 10], "save": [3, 5, 8, 10]}


def test_evaluations_begin_after_their_delay(run):
    assert calendar(run, eval_every=2, eval_delay=5)["evaluate"] == [6, 8, 10]


def test_end_of_training_evaluates_and_saves(run):
    assert calendar(run, eval_at_end=True, at_end=True) == {"log": [1, 4, 8, 10], "evaluate": [10], "save": [10]}


def test_without_held_out_data_nothing_is_evaluated(run):
    run.trainer.corpus.has_held_out = False
    assert calendar(run, eval_every=2, eval_at_end=True)["evaluate"] == []


def test_leaving_early_saves_but_does_not_evaluate(run):
    seen = calendar(run, eval_at_end=True, at_end=True, stop_at=6)
    assert seen == {"log": [1, 4, 6], "evaluate": [], "save": [6]}
    assert "stop_at=6" in run.control.reason


def test_a_stop_by_the_evaluation_is_saved(run):
    run.trainer.checkpoints.at_end = True
    flow, stopping = Flow(), EarlyStopping(patience=1)
    for step, loss in ((2, 1.0), (4, 1.5)):
        run.state.step = step
        run.fire("on_step_end", flow)
        run.evaluate(flow, stopping, eval_loss=loss)
        run.fire("on_log", flow, stopping, metrics=run.line(eval_loss=loss))
        assert run.control.save == (step == 4)
