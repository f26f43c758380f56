"""Report the evaluations of a trial to the hyperparameter search that started it, and end the trial if it is pruned.

The search may also ask a trial to save a checkpoint, or to save one and pause until the search resumes it.

The search listens on a Unix socket of this machine, and passes the socket's path in ``TRIREME_TRIAL``. When a watched
metric is logged, rank 0 sends the metrics as JSON and waits for the answer, so that the answer applies to this step.
A collective then shares the answer, and all ranks end the run at the same step, so none is left waiting.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from .callback import Callback, Metrics
from .metrics_file import json_value

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
TRIAL = "TRIREME_TRIAL"
"""Variable that makes a run a trial: JSON with the socket of the search, the trial's number and watched metrics."""
TRAINING_METRIC = "lr"
"""Metric that every training line has, and no evaluation line."""
ANSWER_SECONDS = 600.0
"""Seconds in which a search must answer. A pruner takes milliseconds, a database that was restarted some minutes."""


def trial_reports() -> TrialReports | None:
    """The callback that reports to the search which started this process; None if none did."""
    given = os.environ.get(TRIAL)
    return TrialReports(**json.loads(given)) if given else None


class TrialReports(Callback):
    """Reports watched metrics, and prunes the run when the search says so.

    Args:
        path: path of the Unix socket on which the search listens.
        number: number of this trial in its study.
        watched: metrics whose lines are reported; empty reports every evaluation.
    """

    def __init__(self, path: str, number: int, watched: list[str]) -> None:
        self.path, self.number, self.watched = path, number, frozenset(watched)
        self.evaluations_only = all(name.startswith("eval_") for name in watched)
        self._channel: socket.socket | None = None
        self._lost = False

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """Ask the search about a line. The last line is only reported: pruning would save no more steps."""
        if state.step == 0 or (self.evaluations_only and TRAINING_METRIC in metrics):
            return
        verdict: dict[str, Any] = {}
        if trainer.mesh.is_main and (not self.watched or self.watched & metrics.keys()):
            last = control.stop or state.step >= state.stop_at
            verdict = self._ask(state.step, {**trainer.metrics, **metrics}, last)
        # Called for every such line, since only rank 0 may know a metric of the user's own.
        prune, save, pause = trainer.mesh.any_flags([bool(verdict.get(name)) for name in ("reason", "save", "pause")])
        if prune:
            control.give_up(verdict.get("reason") or "the search has pruned it")
        elif pause:
            control.interrupt("the search has paused it")
        control.save |= (save or pause) and not prune

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _ask(self, step: int, metrics: Metrics, last: bool) -> dict[str, Any]:
        """The answer of the search: ``reason`` (to prune), ``save``, ``pause``. It is empty if the trial just goes on,
        also when the search does not answer."""
        if self._lost:
            return {}
        message: dict[str, Any] = {"trial": self.number, "step": step, "last": last, "metrics": json_value(metrics)}
        try:
            if self._channel is None:
                self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._channel.settimeout(ANSWER_SECONDS)
                self._channel.connect(self.path)
            self._channel.sendall(json.dumps(message).encode() + b"\n")
            with self._channel.makefile("rb") as answers:
                answer = answers.readline()
            return dict(json.loads(answer)) if answer else self._alone("it has closed the connection")
        except (OSError, ValueError) as error:
            return self._alone(str(error))

    def _alone(self, why: str) -> dict[str, Any]:
        log.warning("the search does not answer (%s): this trial goes on and is not pruned", why)
        self._lost = True
        return {}
