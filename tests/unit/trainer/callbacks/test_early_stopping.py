"""Tests of early stopping and of saving the best model: when a metric has improved, what a resume restores, and errors
about missing metrics and wrong arguments.
"""

from __future__ import annotations

import json
import math

import pytest
from trireme.errors import UserError
from trireme.trainer.callbacks.best_model import BestModel
from trireme.trainer.callbacks.early_stopping import EarlyStopping


def stops_after(run, callback, values):
    for count, value in enumerate(values, start=1):
        run.evaluate(callback, eval_loss=value)
        if run.control.stop:
            return count
    return None


def test_stops_after_patience_in_a_row(run):
    assert stops_after(run, EarlyStopping(patience=2), [3.0, 2.0, 2.5, 1.9, 1.95, 2.1, 1.0]) == 6
    assert "1.9" in run.control.reason


def test_mode_max_and_min_delta(run):
    assert stops_after(run, EarlyStopping(mode="max", patience=2, min_delta=0.1), [0.5, 0.61, 0.70, 0.71, 0.9]) == 4


def test_nan_is_no_improvement(run):
    assert stops_after(run, EarlyStopping(patience=2), [math.nan, math.nan]) == 2


def test_counts_on_after_a_resume(run):
    first = EarlyStopping(patience=2)
    assert stops_after(run, first, [1.0, 1.1]) is None
    second = EarlyStopping(patience=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert stops_after(run, second, [1.2]) == 1


def test_a_stopped_run_stays_stopped_unless_patience_is_raised(run):
    for patience, stop in ((3, False), (2, True)):
        callback = EarlyStopping(patience=patience)
        callback.load_state_dict({"best": 1.0, "waited": 2})
        run.fire("on_train_begin", callback)
        assert run.control.stop is stop


def test_missing_metric_names_those_there(run):
    with pytest.raises(UserError, match=r"eval_accuracy(.|\n)*eval_loss, eval_perplexity"):
        run.evaluate(EarlyStopping(metric="eval_accuracy"), eval_loss=1.0, eval_perplexity=2.7)


@pytest.mark.parametrize("wrong", [{"mode": "low"}, {"patience": 0}, {"min_delta": -1.0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EarlyStopping(**wrong)


@pytest.mark.parametrize(("mode", "best_at"), [("min", [1, 3]), ("max", [1, 2, 4])])
def test_best_model_saves_each_improvement(run, mode, best_at):
    run.trainer.checkpoints.mode = mode
    callback, saved = BestModel(), []
    for run.state.step, loss in enumerate([2.0, 3.0, 1.0, 4.0, math.nan], start=1):
        run.control.clear()
        run.evaluate(callback, eval_loss=loss)
        if run.control.save:
            saved.append(run.state.step)
            assert (run.state.best_metric, run.state.best_step) == (loss, run.state.step)
    assert saved == best_at


def test_best_model_missing_metric(run):
    run.trainer.checkpoints.metric = "eval_f1"
    with pytest.raises(UserError, match=r"checkpoint\.metric = 'eval_f1'"):
        run.evaluate(BestModel(), eval_loss=1.0)
