"""Store the study of a search (its trials, their workers, and how they ended) in an optuna journal or database.

Several workers may share a study, on one machine or on many that see its folder. A worker claims a trial under a lock
of the study, and holds a lock of the trial while it runs the trial. The operating system releases a lock when its
process ends, even if the process is killed. So a running trial whose lock is free was left by a worker that died, and
the next worker resumes the trial from its checkpoint. No trial is counted twice, and none is lost.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from ...errors import Problem, UserError
from ...trainer.component import instantiate
from ...trainer.run_report.study import trial_folders
from .file_locks import lock_file
from .samplers import EXHAUSTED, build_sampler
from .storages import open_storage
from .study_attributes import IDENTITY, OWN, QUEUED, SECONDS, START, STARTS, VALUES

if TYPE_CHECKING:
    from .objective import Objective
    from .search_config import SearchConfig

LOCKS = "claims"
"""Folder of the locks, in that of the study."""
Suggest = Callable[[Trial], dict[str, Any]]
"""Function that gives values by key to a trial."""


@dataclass
class Claim:
    """A trial that this worker runs."""

    trial: Trial
    values: dict[str, Any]
    """Values by key."""
    starts: int
    """How often it was started before."""
    seconds: float
    """Seconds that it ran before."""
    lock: int
    """Descriptor that holds the trial's lock."""
    stored: dict[int, float] = field(default_factory=dict)
    """Values that were reported, by step."""
    start: str = "auto"
    """Where its run begins: ``auto``, or a checkpoint of another trial."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of its processes."""

    @property
    def number(self) -> int:
        return self.trial.number

    def noted(self, name: str) -> Any:
        """An attribute of the trial; None if it has none of this name."""
        return self.trial.user_attrs.get(name)

    def note(self, name: str, value: Any) -> None:
        self.trial.set_user_attr(name, value)

    def release(self) -> None:
        os.close(self.lock)


class StudyStore:
    """A study of optuna with the claims of its workers.

    Args:
        folder: the study's folder.
        name: its name in the storage.
        search, objective: as the recipe writes them.
        identity: settings that must not change while the study goes on.
        combinations: points of the space; None if it has no end.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        search: SearchConfig,
        objective: Objective,
        identity: Mapping[str, Any],
        combinations: int | None = None,
    ) -> None:
        self.folder, self.name, self.search, self.objective = folder, name, search, objective
        self.combinations = combinations
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        quiet_optuna()
        sampler = build_sampler(search.sampler, search.seed, len(objective.modes))
        pruner = instantiate(search.pruner) if search.pruner else optuna.pruners.NopPruner()
        with self.locked():
            self.study = open_storage(
                folder,
                search.storage,
                lambda storage: optuna.create_study(
                    storage=storage,
                    study_name=self._name_in(storage),
                    sampler=sampler,
                    pruner=pruner,
                    directions=objective.directions,
                    load_if_exists=True,
                ),
            )
            self._refuse_other(identity)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Trials that were begun, by number."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    @property
    def points(self) -> int:
        """How many different points its trials have."""
        return len({trial.user_attrs[VALUES] for trial in self.trials if VALUES in trial.user_attrs})

    @property
    def all_tried(self) -> bool:
        """Whether every point of the space has a trial; another one would repeat a run number by number."""
        return self.combinations is not None and self.points >= self.combinations

    def begin_with(self, points: Sequence[Mapping[str, Any]], own: Mapping[str, Any] | None) -> None:
        """Queue trials with fixed values of the study's parameters, once for a study; ``own`` are the recipe's."""
        with self.locked():
            if self.study.user_attrs.get(QUEUED):
                return
            if own:
                self.study.enqueue_trial(dict(own), user_attrs={OWN: True}, skip_if_exists=True)
            for point in points:
                self.study.enqueue_trial(dict(point), skip_if_exists=True)
            self.study.set_user_attr(QUEUED, True)

    def claim(self, suggest: Suggest) -> Claim | None:
        """A trial that was left by a worker, or else a new one; None if the study has all its trials."""
        with self.locked():
            claim = self.left(suggest)
            return claim if claim is not None or self.full else self.new(suggest)

    @property
    def full(self) -> bool:
        """Whether all trials of the study have begun."""
        many = len(self.trials) >= self.search.trials
        return many or bool(self.study.user_attrs.get(EXHAUSTED)) or self.all_tried

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do: no trial goes on or waits to, and no further one would begin."""
        return self.full and all(trial.state.is_finished() for trial in self.trials)

    def interrupted(self) -> set[int]:
        """Numbers of trials that no worker runs, and that have not ended: the next worker goes on with them."""
        found = set()
        with self.locked():  # a worker that claims a trial now must not meet a lock that is held only for this check
            for trial in self.trials:
                lock = self._try_lock(trial.number) if trial.state == TrialState.RUNNING else None
                if lock is not None:
                    os.close(lock)
                    found.add(trial.number)
        return found

    @property
    def queued(self) -> bool:
        """Whether a trial with fixed values waits to be begun."""
        return any(trial.state == TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    @property
    def unfinished(self) -> dict[int, dict[str, Any]]:
        """Trials that have begun and not ended, with their values by key."""
        running = [trial for trial in self.trials if trial.state == TrialState.RUNNING]
        return {trial.number: json.loads(trial.user_attrs.get(VALUES, "{}")) for trial in running}

    def left(self, suggest: Suggest, numbers: Container[int] | None = None) -> Claim | None:
        """An unfinished trial that no worker runs any more; None if there is none. Called under the lock.

        Args:
            numbers: trials that may be taken; None allows all.
        """
        for frozen in self.trials:
            wanted = frozen.state == TrialState.RUNNING and (numbers is None or frozen.number in numbers)
            lock = self._try_lock(frozen.number) if wanted else None
            if lock is None:
                continue
            if self._runs(frozen.number):
                return self._claimed(Trial(self.study, frozen._trial_id), lock, suggest)
            os.close(lock)  # its worker has finished it since the trials were read
        return None

    def new(
        self, suggest: Suggest, values: Mapping[str, Any] | None = None, notes: Mapping[str, Any] | None = None
    ) -> Claim:
        """A new trial, with fixed values by name, or those that are queued, or those that ``suggest`` draws. Called
        under the lock."""
        if values is not None:
            self.study.enqueue_trial(dict(values), user_attrs=dict(notes or {}))
        trial = self.study.ask()
        lock = self._try_lock(trial.number)
        assert lock is not None, f"another process holds the lock of the new trial {trial.number}"
        return self._claimed(trial, lock, suggest)

    def place(self) -> int | None:
        """Hold a place in the study for a trial that a server chooses; returns a descriptor that holds the place until
        it is closed. None if trials that have begun and held places already make up the study. Called under the
        lock."""
        held, free = len(self.trials), None
        for number in range(self.search.trials):
            file = self.folder / LOCKS / f"place_{number:04d}"
            if free is not None and not file.exists():  # the lowest free place is taken first
                break
            lock = lock_file(file, wait=False)
            if lock is None:
                held += 1
            elif free is None:
                free = lock
            else:
                os.close(lock)
        if free is not None and (held >= self.search.trials or self.full):
            os.close(free)
            return None
        return free

    def exhaust(self) -> None:
        """Note that no further trial will begin, however many are wanted."""
        self.study.set_user_attr(EXHAUSTED, True)

    def note_value(self, claim: Claim, step: int, value: float) -> None:
        """Note a value that a trial has reported."""
        if step not in claim.stored:
            claim.stored[step] = value
            claim.trial.report(value, step)

    def report(self, claim: Claim, step: int, value: float) -> bool:
        """Note a value, and say whether the pruner would end the trial now."""
        self.note_value(claim, step, value)
        return claim.trial.should_prune()

    def finish(self, claim: Claim, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Record how a trial ended, and release its lock."""
        self.study.tell(claim.trial, values, state)
        claim.release()

    def _runs(self, number: int) -> bool:
        """Whether a trial has not ended, now that its lock is held: workers first record the end of a trial, and then
        release its lock."""
        return any(trial.number == number and trial.state == TrialState.RUNNING for trial in self.trials)

    def _claimed(self, trial: Trial, lock: int, suggest: Suggest) -> Claim:
        attributes = trial.user_attrs
        if VALUES in attributes:
            values = json.loads(attributes[VALUES])
        else:
            values = suggest(trial)
            trial.set_user_attr(VALUES, json.dumps(values))
        starts = int(attributes.get(STARTS, 0))
        trial.set_user_attr(STARTS, starts + 1)
        frozen = next(each for each in self.trials if each.number == trial.number)
        seconds = float(attributes.get(SECONDS, 0.0))
        start = attributes.get(START, "auto")
        return Claim(trial, values, starts, seconds, lock, dict(frozen.intermediate_values), start)

    def _name_in(self, storage: Any) -> str:
        """The study's name: that of the one study of a journal, whose folder may have been moved or copied since."""
        there = optuna.get_all_study_names(storage) if self.search.storage is None else []
        return there[0] if there else self.name

    def _refuse_other(self, identity: Mapping[str, Any]) -> None:
        """Keep the identity of a new study, and refuse an old one that has another.

        Raises:
            UserError: the space or the objectives differ.
        """
        known = self.study.user_attrs.get(IDENTITY)
        if known is None and not self.study.get_trials(deepcopy=False):
            if lost := without_study(self.folder):
                raise UserError(lost)
            self.study.set_user_attr(IDENTITY, json.dumps(identity, sort_keys=True))
            return
        known = json.loads(known) if known else {}
        now = json.loads(json.dumps(identity))
        for part, field_name in (("space", "search.space"), ("objectives", "search.objectives")):
            before, after = known.get(part), now.get(part)
            if before == after:
                continue
            both = (before, after) if isinstance(before, dict) and isinstance(after, dict) else ({}, {})
            changed = sorted(key for key in {*both[0], *both[1]} if both[0].get(key) != both[1].get(key))
            words = f" (changed: {', '.join(changed)})" if changed else ""
            why = f"is not that of the study in {self.folder}{words}"
            fix = "choose another run.dir or search.study, or start over with --fresh (the old folder is kept)"
            raise UserError(Problem(field_name, why, fix))

    def _try_lock(self, number: int) -> int | None:
        """A descriptor that holds the lock of a trial; None if another worker holds it."""
        return lock_file(self.folder / LOCKS / f"trial_{number:04d}", wait=False)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Context in which no other worker claims a trial."""
        descriptor = lock_file(self.folder / LOCKS / "study", wait=True)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def without_study(folder: Path) -> Problem | None:
    """The problem of a folder with trials whose study is new: they would be resumed as trials of other values."""
    trials = trial_folders(folder) if folder.is_dir() else []
    if not trials:
        return None
    held = f"{len(trials)} trial{'s' if len(trials) > 1 else ''}"
    why = f"holds {held} of a study whose journal or database entry is gone"
    return Problem("run.dir", why, "bring it back, choose another run.dir, or start over with --fresh", str(folder))


def quiet_optuna() -> None:
    """Keep optuna from printing a line for each trial, and from warning of what it calls experimental."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
