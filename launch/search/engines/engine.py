"""The interface between a search and the engine that chooses its trials: optuna, Ray Tune, W&B, SigOpt or your own.

A search asks its engine for the next trial, sends it intermediate values, asks whether to end the trial, and reports
how the trial ended. The engine trains nothing and stores no results: for every engine, the study (``study_store.py``)
stores trials, their values and how they ended. So tables, best recipes, ``--best`` and resuming after a kill are the
same for all engines.

``search.engine._target_`` names the class; its other arguments are those of the constructor.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ....errors import Problem, UserError
from ....trainer.trackers.tracker_library import is_installed
from ..space import Space
from ..space_function import call_space

if TYPE_CHECKING:
    from ..prepared import Prepared
    from ..search_config import SearchConfig
    from ..study_store import Claim, StudyStore

Values = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """The engine's decision about a trial that has reported a value."""

    reason: str = ""
    """Why the trial is pruned; empty if it is not."""
    save: bool = False
    """Write a checkpoint of this step, from which another trial will begin."""
    pause: bool = False
    """Save and leave; the trial goes on when the engine asks for it again."""


GO_ON = Verdict()


class Engine:
    """Chooses trials. A class of your own overrides ``suggest`` and perhaps ``verdict``."""

    TITLE: ClassVar[str] = "this engine"
    """Name in messages."""
    MODULES: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed."""
    INSTALL: ClassVar[str] = ""
    """The command that installs them."""
    OF_OPTUNA: ClassVar[bool] = False
    """Whether ``search.sampler``, ``pruner`` and functions as spaces, which belong to optuna, have a meaning."""
    MOST_OBJECTIVES: ClassVar[int] = 1
    """Number of objectives that a search may have."""
    MOST_JOBS: ClassVar[int | None] = None
    """Number of trials that may run at once; None for any number."""
    SHARED: ClassVar[bool] = False
    """Whether several workers may share a study."""
    PRUNES: ClassVar[str] = ""
    """Key that makes the engine prune trials; empty if it cannot prune."""

    prepared: Prepared
    store: StudyStore
    jobs: int
    left = False
    """Whether the search ends before the engine does: nothing may wait any more."""

    @classmethod
    def missing(cls) -> str:
        """The missing package, and how to install it; empty if nothing is missing."""
        absent = [module for module in cls.MODULES if not is_installed(module)]
        which = "which is" if len(absent) == 1 else "which are"
        return f"needs {' and '.join(absent)}, {which} not installed; {cls.INSTALL}" if absent else ""

    @staticmethod
    def module(name: str) -> Any:
        """A module of the engine's library; typed as Any, since most of these are not installed."""
        return importlib.import_module(name)

    @classmethod
    def lacks(cls, search: SearchConfig, space: Space | None) -> Iterator[str]:
        """Options of a search that this engine does not have, each as ``field=value is wrong; do this``.

        Args:
            space: None for a function.
        """
        if not cls.OF_OPTUNA:
            yield from _optuna_only(cls, search, space)
        if len(search.objectives) > cls.MOST_OBJECTIVES:
            most = "one objective" if cls.MOST_OBJECTIVES == 1 else f"{cls.MOST_OBJECTIVES} objectives"
            names = ", ".join(search.objectives)
            yield f"objectives ({names}) are more than {cls.TITLE} takes ({most}); leave some out, or use search=optuna"
        if cls.MOST_JOBS is not None and search.jobs > cls.MOST_JOBS:
            yield f"jobs={search.jobs} is more than {cls.TITLE} can have at once; use {cls.MOST_JOBS}"
        if not cls.SHARED and search.workers > 1:
            fix = "use search.jobs on one machine, or search=optuna"
            yield f"workers={search.workers} is wrong because {cls.TITLE} has one worker for a study; {fix}"

    def flaws(self, search: SearchConfig, space: Space | None) -> Iterator[str]:
        """Mistakes in this engine's own arguments, each as ``engine.method='x' is wrong; do this``."""
        return iter(())

    def problems(self, prepared: Prepared) -> list[Problem]:
        """Problems of other parts of a recipe that this engine does not support."""
        return []

    # -- a study ------------------------------------------------------------------------------------------------

    def begin_with(self, store: StudyStore, points: Sequence[Mapping[str, Any]], own: Mapping[str, Any] | None) -> None:
        """Take the first trials of a new study: ``search.first``, and the recipe's own values. They are queued in the
        study, and run before the engine is asked."""
        store.begin_with(points, own)

    def open(self, prepared: Prepared, store: StudyStore, jobs: int) -> None:
        """Begin, or go on with a study: ``store.trials`` are those of earlier starts.

        Raises:
            UserError: a service refuses the login, or cannot be reached.
        """
        self.prepared, self.store, self.jobs = prepared, store, jobs

    def claim(self) -> Claim | None:
        """The next trial: one that was left, one that is queued, or a new one. May wait; called by several threads.
        None: there are no more."""
        with self.store.locked():
            claim = self.store.left(self.space_values)
            if claim is not None or self.store.full:
                return claim
            if self.store.queued:
                return self.store.new(self.space_values)
            values = self.suggest()
            return None if values is None else self.store.new(self.space_values, values)

    def suggest(self) -> Values | None:
        """Values by name of a new trial, as the study keeps them (``Parameter.stored``); None: there are no more."""
        raise NotImplementedError

    def verdict(self, claim: Claim, step: int, value: float) -> Verdict:
        """The engine's decision about a trial after an evaluation. May wait; called by a thread of the trial's own."""
        self.store.note_value(claim, step, value)
        return GO_ON

    def ended(self, claim: Claim, values: Sequence[float] | None) -> None:
        """Called when a trial has ended: with its values, or without any."""

    def leave(self) -> None:
        """Wait for nothing any more: running trials save and leave, and no trial begins."""
        self.left = True

    def close(self) -> None:
        """Let go of processes and connections."""

    def space_values(self, trial: Any) -> Values:
        """Values by key for a trial of the study, whose values by name are fixed or drawn."""
        space = self.prepared.space
        return space.suggest(trial) if isinstance(space, Space) else call_space(space, trial)


def _optuna_only(cls: type[Engine], search: SearchConfig, space: Space | None) -> Iterator[str]:
    """Refusals of keys that only optuna supports."""
    if search.sampler is not None:
        yield f"sampler is a key of optuna, and {cls.TITLE} chooses the values; leave it out, or use search=optuna"
    if search.pruner is not None:
        does = "ends trials itself" if cls.PRUNES else "prunes nothing"
        yield f"pruner is a key of optuna, and {cls.TITLE} {does}; use {cls.PRUNES or 'search=optuna'}"
    if space is None:
        yield f"space={search.space!r} is a function of optuna's trials; write ranges and choices, or use search=optuna"
    for parameter in space.parameters if space is not None else ():
        if parameter.when:
            why = f"is conditional, and {cls.TITLE} draws every key for every trial"
            yield f"space.{parameter.key}.when {why}; leave it out, or use search=optuna"


def engine_class(component: Mapping[str, Any]) -> type[Engine]:
    """The class of an engine; its library is not imported."""
    from ....trainer.component import locate

    return locate(component["_target_"])


def build_engine(component: Mapping[str, Any]) -> Engine:
    """The engine with its arguments. Components among these are built by the engine, which adds values that it knows.

    Raises:
        UserError: a package is missing.
    """
    cls = engine_class(component)
    if missing := cls.missing():
        why, _, fix = missing.partition("; ")
        raise UserError(Problem("search.engine", f"{cls.TITLE} {why}", fix))
    return cls(**{key: value for key, value in component.items() if key != "_target_"})
