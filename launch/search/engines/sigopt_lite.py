"""SigOpt as the engine of a search (``search=sigopt``), through SigOpt's client and its local optimizer ``sigoptlite``.

The hosted service has ended, so there is no server to ask and no token to give. ``sigoptlite`` is SigOpt's optimizer as
a library. It has one open suggestion at a time and forgets everything when its process ends, so a resumed search tells
it every trial of the study again. Its code for two objectives needs numpy below 2.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ..space import Parameter, Space
from .engine import Engine, Values
from .stepped_ranges import fitted, steps

if TYPE_CHECKING:
    from ..prepared import Prepared
    from ..search_config import SearchConfig
    from ..study_store import Claim, StudyStore

LONGEST_NAME = 100
"""Characters of a parameter's name."""


class SigOpt(Engine):
    """SigOpt's optimizer in memory: random at first, then Gaussian processes, then Parzen estimators."""

    TITLE: ClassVar = "SigOpt"
    MODULES: ClassVar = ("sigopt", "sigoptlite")
    INSTALL: ClassVar = "pip install sigopt && pip install --no-deps sigoptlite libsigopt qmcpy==1.2"
    MOST_JOBS: ClassVar = 1

    def flaws(self, search: SearchConfig, space: Space | None) -> Iterator[str]:
        for parameter in space.parameters if space is not None else ():
            if flaw := _flaw(parameter):
                yield f"space.{parameter.key} {flaw}"

    def open(self, prepared: Prepared, store: StudyStore, jobs: int) -> None:
        super().open(prepared, store, jobs)
        from optuna.trial import TrialState  # imported here, since the keys are listed where optuna is not installed

        from ..run_search import say

        say("SigOpt's service has ended: this search runs with sigoptlite, in this process")
        objective, space = prepared.objective, prepared.space
        assert isinstance(space, Space)
        connection = self.module("sigopt").Connection(driver="lite")
        experiment = connection.experiments().create(
            name=prepared.name[:LONGEST_NAME],
            parameters=[described(parameter) for parameter in space.parameters],
            metrics=[{"name": name, "objective": f"{mode}imize"} for name, mode in objective.modes.items()],
            observation_budget=prepared.search.trials,
            parallel_bandwidth=1,
        )
        self.parameters, self.experiment = space.parameters, connection.experiments(experiment.id)
        for trial in store.trials:
            if trial.state.is_finished():
                self._observe(trial.params, trial.values if trial.state == TrialState.COMPLETE else None)

    def suggest(self) -> Values | None:
        import numpy as np

        # The library draws from numpy's one generator.
        seed = np.random.SeedSequence([self.prepared.search.seed, len(self.store.trials)]).generate_state(1)[0]
        np.random.seed(seed)
        found = self.experiment.suggestions().create().assignments
        return {each.name: _read(each, found[each.name]) for each in self.parameters}

    def ended(self, claim: Claim, values: Sequence[float] | None) -> None:
        self._observe(claim.trial.params, values)

    def _observe(self, params: Values, values: Sequence[float] | None) -> None:
        assignments = {each.name: _written(each, params[each.name]) for each in self.parameters}
        if values is None:
            self.experiment.observations().create(assignments=assignments, failed=True)
            return
        named = [
            {"name": name, "value": value} for name, value in zip(self.prepared.objective.names, values, strict=True)
        ]
        self.experiment.observations().create(assignments=assignments, values=named)


def described(parameter: Parameter) -> dict[str, Any]:
    """A key's values as a parameter of SigOpt."""
    if parameter.choices is not None:
        labels = [_written(parameter, parameter.stored(choice)) for choice in parameter.choices]
        return {"name": parameter.name, "type": "categorical", "categorical_values": labels}
    kind: dict[str, Any] = {"name": parameter.name, "type": "int" if parameter.whole else "double"}
    if parameter.step is not None and not (parameter.whole and parameter.step == 1):
        return {**kind, "grid": steps(parameter)}
    change = int if parameter.whole else float
    bounds = {"min": change(parameter.low), "max": change(parameter.high)}
    return {**kind, "bounds": bounds, **({"transformation": "log"} if parameter.log else {})}


def _flaw(parameter: Parameter) -> str:
    """Why SigOpt cannot search a key, as ``is wrong; do this``; empty if it can."""
    if len(parameter.name) > LONGEST_NAME:
        return f"has a name of more than {LONGEST_NAME} characters, which SigOpt does not take; use search=optuna"
    if parameter.choices is not None:
        one = len(parameter.choices) == 1
        return "has one choice, and SigOpt needs two; leave the key out, and set it in the recipe" if one else ""
    if parameter.low == parameter.high:
        return "has one value, and SigOpt needs two; leave the key out, and set it in the recipe"
    if parameter.log and parameter.whole:
        return ".log is for numbers that are no integers in SigOpt; leave it out, or write choices"
    return ""


def _written(parameter: Parameter, value: Any) -> Any:
    """A value of the study as one of SigOpt, whose choices are texts."""
    return value if parameter.choices is None else json.dumps(value)


def _read(parameter: Parameter, value: Any) -> Any:
    return fitted(parameter, value) if parameter.choices is None else json.loads(value)
