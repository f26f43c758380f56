"""Tests of how a trial reports to its hyperparameter search: it stops when pruned, saves or pauses when asked, and goes
on if the search is gone.
"""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from trireme.launch.search.engines.engine import Verdict
from trireme.launch.search.trial_socket import TrialSocket
from trireme.trainer.callbacks.trial_reports import TRIAL, TrialReports, trial_reports
from trireme.trainer.shared_requests import FLAGS
from trireme.trainer.trainer_state import Control, TrainerState


def log(
    reports: TrialReports, metrics: dict[str, Any], step: int = 5, main: bool = True, others: bool = False
) -> Control:
    """The control after a line of metrics; ``others``: whether another rank was told to prune."""
    mesh = SimpleNamespace(is_main=main, any_flags=lambda flags: [flag or others for flag in flags])
    trainer: Any = SimpleNamespace(mesh=mesh, metrics={"loss": 3.0})
    control = Control()
    reports.on_log(trainer, TrainerState(step=step, stop_at=10), control, metrics)
    return control


def test_a_verdict_ends_the_run_for_good() -> None:
    asked: list[tuple[int, int, dict[str, Any], bool]] = []

    def answer(*report: Any) -> Verdict:
        asked.append(report)
        return Verdict("worse than the median" if report[2]["eval_loss"] > 2 else "")

    found = TrialSocket(answer)
    try:
        reports = TrialReports(**json.loads(found.variables(7, ["eval_loss"])[TRIAL]))
        assert not log(reports, {"eval_loss": 1.0}).stop
        pruned = log(reports, {"eval_loss": 3.0})
        assert pruned.stop and pruned.prune and pruned.reason == "worse than the median"
        assert log(reports, {"eval_loss": float("nan")}, step=10).stop is False
        log(reports, {"eval_loss": 3.0}, step=0)
        log(reports, {"loss": 3.0, "lr": 0.1})
        reports.close()
    finally:
        found.close()
    assert [(trial, step, last) for trial, step, _, last in asked] == [(7, 5, False), (7, 5, False), (7, 10, True)]
    assert asked[0][2] == {"loss": 3.0, "eval_loss": 1.0} and str(asked[2][2]["eval_loss"]) == "nan"


@pytest.mark.parametrize("pause", [False, True])
def test_a_search_may_have_a_trial_save(pause: bool) -> None:
    found = TrialSocket(lambda *report: Verdict(save=not pause, pause=pause))
    try:
        reports = TrialReports(**json.loads(found.variables(7, ["eval_loss"])[TRIAL]))
        control = log(reports, {"eval_loss": 1.0})
        reports.close()
    finally:
        found.close()
    assert control.save and (control.stop, control.interrupted, control.prune) == (pause, pause, False)


def test_all_ranks_heed_the_verdict_of_one() -> None:
    reports = TrialReports("/nowhere", 1, ["eval_loss"])
    other = log(reports, {"eval_loss": 1.0}, main=False, others=True)
    assert other.stop and other.prune
    assert "prune" in FLAGS, "a callback of one rank may ask for it too"


def test_a_search_that_is_gone_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reports = TrialReports("/nowhere/reports", 1, ["loss"])
    with caplog.at_level(logging.WARNING):
        assert not log(reports, {"loss": 1.0, "lr": 0.1}).stop
        assert not log(reports, {"loss": 1.0, "lr": 0.1}).stop
    assert len(caplog.records) == 1 and "does not answer" in caplog.text


def test_only_trials_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRIAL, raising=False)
    assert trial_reports() is None
    monkeypatch.setenv(TRIAL, json.dumps({"path": "/x", "number": 3, "watched": ["loss"]}))
    found = trial_reports()
    assert found is not None and (found.number, found.evaluations_only) == (3, False)
