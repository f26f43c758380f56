"""Run the trials of a study: claim a trial, start it, answer its reports, and record how it ended.

The process of the search owns the study and trains nothing itself. Each of ``search.jobs`` threads runs one trial after
the other in processes of their own (``trial_starter.py``), under the recipe's plan and number of ranks.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ...errors import Problem, UserError
from ...trainer.interruption import SAME_KEYSTROKE, answered_by, parse_time
from ..error_report import LeftEarly, RanksFailed
from .engines.engine import GO_ON, Engine, Verdict
from .memory_kills import memory_kills
from .objective import metrics_of
from .prepared import Prepared
from .shares import Share, shares
from .study_attributes import END, FOLDER, REASON, SECONDS
from .study_store import Claim, StudyStore, TrialState
from .trial_process import DIVERGED, DONE, FAILED, INTERRUPTED, KILLED, MEMORY, OUTPUT, PRUNED, REFUSED, SAVED
from .trial_socket import TrialSocket
from .trial_starter import Started, TrialStarter

TIMED_OUT = "timed out"
OF_THE_POINT = (PRUNED, DIVERGED, MEMORY, REFUSED, TIMED_OUT)
"""Endings that a trial's values cause: the study counts them as pruned, so that samplers avoid similar values. Other
failures do not depend on the values."""
AGAIN = (KILLED, SAVED, INTERRUPTED)
"""Endings after which a trial goes on from its checkpoint."""
NOT_ASKED_FOR = "it was paused, and not asked for again"


@dataclass
class Ended:
    """How a trial ended."""

    kind: str
    text: str = ""
    values: list[float] | None = None


class Search:
    """The trials of one worker.

    Args:
        prepared: the search, checked.
        store: its study.
        engine: chooses the trials.
        jobs: trials at once.
        starter: starts their processes.
    """

    def __init__(self, prepared: Prepared, store: StudyStore, engine: Engine, jobs: int, starter: TrialStarter) -> None:
        self.prepared, self.store, self.engine, self.objective = prepared, store, engine, prepared.objective
        self.search = prepared.search
        self.shares = shares(jobs, prepared.ranks)
        self.running: dict[int, tuple[Claim, Started | None]] = {}
        self.verdicts: dict[int, str] = {}
        self.paused: set[int] = set()
        """Running trials that were told to save and leave."""
        self.waiting: set[int] = set()
        """Paused trials that have saved and left, and wait to be resumed."""
        self.failed_in_a_row = 0
        self.error: BaseException | None = None
        """The error that ends the search."""
        self.signals: list[float] = []
        """When signals came, in monotonic seconds."""
        self.ending = False
        """Whether running trials were told of an error."""
        self.left = False
        """Whether a signal has ended the search."""
        limit = parse_time(self.search.time) if self.search.time is not None else math.inf
        self.deadline = time.monotonic() + limit
        self.starter = starter
        self.socket = TrialSocket(self.answer)
        self.jobs = jobs

    def run(self) -> None:
        """Run trials until there are none left.

        Raises:
            LeftEarly: a signal came; trials have saved, and the same command goes on.
            UserError: the objective cannot be computed.
            RanksFailed: too many trials in a row have failed.
        """
        threads = [threading.Thread(target=self._work, args=(share,), daemon=True) for share in self.shares]
        try:
            self.engine.open(self.prepared, self.store, self.jobs)
            with answered_by(self._note_signal):
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():
                        thread.join(0.1)
                        self._stop_if_asked()
            if self.error is None and not self.left and time.monotonic() < self.deadline:
                self._end_paused()
        finally:
            self.engine.close()
            self.socket.close()
        if self.error is not None:
            raise self.error
        if self.left:
            say("left with everything saved; the same command goes on")
            raise LeftEarly

    def answer(self, number: int, step: int, metrics: dict[str, Any], last: bool) -> Verdict:
        """The verdict on a trial after a line of metrics."""
        if not self.objective.single or number not in self.running:
            return GO_ON
        value = float(self.objective.of_lines([metrics])[0])
        claim = self.running[number][0]
        if last:
            self.store.note_value(claim, step, value)
            return GO_ON
        verdict = self.engine.verdict(claim, step, value)
        if verdict.reason:
            self.verdicts[number] = verdict.reason
        elif verdict.pause:
            self.paused.add(number)
        return verdict

    # -- one trial after the other ------------------------------------------------------------------------------

    def _work(self, share: Share) -> None:
        try:
            while not self.left and self.error is None and time.monotonic() < self.deadline:
                claim = self.engine.claim()
                if claim is None:
                    return
                self._trial(claim, share)
        except BaseException as error:
            self.error = self.error or error

    def _trial(self, claim: Claim, share: Share) -> None:
        """Run a trial to its end, in several starts if its process is killed."""
        self.running[claim.number] = (claim, None)
        claim.note(FOLDER, self._folder(claim).name)
        kind, text = KILLED, ""
        for attempt in range(self.search.retries + 1):
            kind, text = self._start(claim, share)
            if kind not in AGAIN or self.left or self.error is not None or claim.number in self.paused:
                break
            if attempt < self.search.retries:
                say(f"trial {claim.number}: {kind} ({text}); it goes on from its last checkpoint")
        if (self.left or self.error is not None) and kind in AGAIN:
            say(f"trial {claim.number}: {kind}; the next worker or search continues it")
            claim.release()
        elif kind in AGAIN and claim.number in self.paused:
            self.waiting.add(claim.number)
            claim.release()
        else:
            self._finish(claim, self._judged(claim, kind, text))
        self.paused.discard(claim.number)
        self.running.pop(claim.number)

    def _start(self, claim: Claim, share: Share) -> tuple[str, str]:
        """Start the process of a trial, and wait for its end: kind and reason."""
        search, folder = self.search, self._folder(claim)
        limit = None if search.trial_time is None else max(parse_time(search.trial_time) - claim.seconds, 0.0)
        began, kills = time.monotonic(), memory_kills()
        started = self.starter.start(self._request(claim, folder, share))
        self.running[claim.number] = (claim, started)
        if self.left:
            self.starter.tell(started, signal.SIGINT)
        in_time = self.starter.wait(started, limit)
        if not in_time:
            self.starter.leave(started)
        claim.seconds += time.monotonic() - began
        claim.note(SECONDS, claim.seconds)
        kind, text = self.starter.ending(started)
        if kind == KILLED and memory_kills() > kills:
            return MEMORY, f"Linux has killed processes for want of memory: {text}"
        return (TIMED_OUT, f"after {search.trial_time}") if not in_time and kind in AGAIN else (kind, text)

    def _request(self, claim: Claim, folder: Path, share: Share) -> dict[str, Any]:
        from ..notebook import as_overrides

        own = {"run.dir": str(folder), "run.group": self.prepared.name, "run.trial": claim.number}
        return {
            **self.prepared.sample,
            "overrides": [*self.prepared.command.overrides_of(claim.values), *as_overrides(own)],
            "run_dir": str(folder),
            "start": claim.start if claim.start == "auto" else str(self.prepared.folder / claim.start),
            "cores": share.cores,
            "env": {
                **share.variables,
                **claim.variables,
                **self.socket.variables(claim.number, self.objective.watched),
            },
        }

    def _folder(self, claim: Claim) -> Path:
        return self.prepared.folder / f"trial_{claim.number:04d}"

    # -- how it ended -------------------------------------------------------------------------------------------

    def _judged(self, claim: Claim, kind: str, text: str) -> Ended:
        """The ending of a trial with its values, or with the reason why it has none."""
        verdict = self.verdicts.get(claim.number)
        if kind in (DONE, PRUNED) and verdict:
            return Ended(PRUNED, verdict)
        if kind != DONE:
            return Ended(TIMED_OUT if kind == SAVED else kind, text)
        try:
            values = self.objective.of_lines(metrics_of(self._folder(claim)))
        except KeyError as error:
            return Ended(FAILED, f"no line of its metrics has {error.args[0]}")
        except UserError as error:  # the user's own function
            self.error = self.error or error
            return Ended(FAILED, brief(str(error)))
        return (
            Ended(DIVERGED, "its objective is no number") if any(map(math.isnan, values)) else Ended(DONE, "", values)
        )

    def _finish(self, claim: Claim, ended: Ended) -> None:
        claim.note(END, ended.kind)
        claim.note(REASON, ended.text)
        state = TrialState.COMPLETE if ended.values is not None else TrialState.FAIL
        self.store.finish(claim, TrialState.PRUNED if ended.kind in OF_THE_POINT else state, ended.values)
        self.engine.ended(claim, ended.values)
        say(self._line(claim, ended))
        self.error = self.error or self.socket.failure
        failed = ended.kind in (FAILED, KILLED, REFUSED)
        self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
        if self.error is None and self.failed_in_a_row >= self.search.max_failures:
            self.error = self._too_many(claim, ended)
        elif self.error is None and ended.text.startswith("no line of its metrics"):
            fix = f"choose a metric of {self._folder(claim) / 'metrics.jsonl'}"
            self.error = UserError(Problem("search.objectives", ended.text, fix, self.objective.names))

    def _end_paused(self) -> None:
        """End trials that the engine has paused and not asked for again, and note whether the engine has ended too
        early."""
        if not self.store.full:
            self.store.exhaust()
        while (claim := self._next_paused()) is not None:
            self._finish(claim, Ended(PRUNED, NOT_ASKED_FOR))

    def _next_paused(self) -> Claim | None:
        with self.store.locked():
            return self.store.left(self.engine.space_values, self.waiting)

    def _too_many(self, claim: Claim, ended: Ended) -> BaseException:
        count = self.failed_in_a_row
        if ended.kind == REFUSED:
            return UserError(f"{count} trials in a row were refused, the last one for this:\n{ended.text}")
        output = self._folder(claim) / "logs" / OUTPUT
        return RanksFailed(f"{count} trials in a row have failed; the last one: {ended.text}\nits output: {output}")

    def _line(self, claim: Claim, ended: Ended) -> str:
        shown = ", ".join(f"{key}={_short(value)}" for key, value in claim.values.items())
        if ended.values is not None:
            pairs = zip(self.objective.names, ended.values, strict=True)
            how = "  ".join(f"{name} {value:.4f}" for name, value in pairs)
        else:
            how = f"{ended.kind}{f' ({brief(ended.text)})' if ended.text else ''}"
        return f"trial {claim.number}: {how}  [{shown}]  {claim.seconds:.1f} s"

    # -- signals --------------------------------------------------------------------------------------------------

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(time.monotonic())

    def _stop_if_asked(self) -> None:
        """After an error or a signal, have running trials save and leave; a second signal kills them."""
        if self.error is not None and not self.ending:
            self.ending = True
            self.engine.leave()
            self._tell_all(signal.SIGINT)
        if not self.signals:
            return
        first = not self.left
        self.left = True
        second = self.signals[-1] - self.signals[0] > SAME_KEYSTROKE
        if first:
            self.engine.leave()
            say("trials save and leave; Ctrl-C again ends them at once")
        if first or second:
            self._tell_all(signal.SIGKILL if second else signal.SIGINT)

    def _tell_all(self, number: signal.Signals) -> None:
        for _, started in list(self.running.values()):
            if started is not None:
                self.starter.tell(started, number)


def brief(text: str) -> str:
    """The head of a message: a problem's key and what is wrong with it."""
    return " ".join(line.strip() for line in text.splitlines()[:2])[:160]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
