"""W&B as the engine of a search (``search=wandb``): it makes or joins a sweep, and W&B's server chooses the trials.

W&B's server also ends runs early by hyperband. The server judges by the metrics that the runs themselves report, so
trials need ``tracker=wandb``. Each running trial has its own agent, which asks the server every few seconds whether to
end the run, and tells the server that the run is alive.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import yaml

from ....errors import Problem, UserError
from ....trainer.trackers.line import tag
from ..space import Parameter, Space
from .engine import GO_ON, Engine, Values, Verdict
from .stepped_ranges import fitted, steps

if TYPE_CHECKING:
    from ..prepared import Prepared
    from ..search_config import SearchConfig
    from ..study_store import Claim, StudyStore

SWEEP = "trireme:wandb_sweep"
"""Attribute of a study: ``entity/project/sweep``."""
RUN = "trireme:wandb_run"
"""Attribute of a trial: id of its run there."""
TRACKER = "trireme.trainer.trackers.wandb.Wandb"
HEARTBEAT_SECONDS = 5.0
"""Seconds between two questions of an agent, as in W&B's own agents."""


class WandbSweep(Engine):
    """A sweep of W&B.

    Args:
        method: how the server chooses values.
        early_terminate: when it ends runs, such as ``{type: hyperband, min_iter: 3}``, counted in evaluations; null
            ends none.
        sweep: id of a sweep to join, or ``entity/project/id``; null makes one, and goes on with it.
    """

    TITLE: ClassVar = "W&B"
    MODULES: ClassVar = ("wandb",)
    INSTALL: ClassVar = "pip install 'trireme-train[wandb]'"
    SHARED: ClassVar = True
    PRUNES: ClassVar = "search.engine.early_terminate"

    def __init__(
        self,
        method: Literal["bayes", "random", "grid"] = "bayes",
        early_terminate: dict[str, Any] | None = None,
        sweep: str | None = None,
    ) -> None:
        self.method, self.early_terminate, self.sweep = method, early_terminate, sweep
        self.free: list[str] = []
        """Agents without a run."""
        self.agents: dict[str, str] = {}
        """Agent by run."""
        self.stopped: set[str] = set()
        """Runs that the server has told to end."""
        self._lock, self._claiming = threading.Lock(), threading.Lock()
        self._woken = threading.Event()

    def flaws(self, search: SearchConfig, space: Space | None) -> Iterator[str]:
        if search.function is not None:
            why = "cannot be read by W&B, which compares the metrics that runs report"
            yield f"function={search.function!r} {why}; name a metric in search.objectives, or use search=optuna"
        if search.first:
            yield "first cannot be used: W&B's server chooses every trial; leave it out, or use search=optuna"
        if self.early_terminate is not None and self.early_terminate.get("type") != "hyperband":
            yield "engine.early_terminate must have the type hyperband; write {type: hyperband, min_iter: 3}"
        for parameter in space.parameters if space is not None and self.method == "grid" else ():
            if parameter.choices is None and parameter.step is None and not parameter.whole:
                yield f"space.{parameter.key} has too many values for a grid; give a step, or choices"

    def problems(self, prepared: Prepared) -> list[Problem]:
        tracker = self._tracker(prepared)
        if tracker is None:
            why = "needs runs that report to W&B, since its server chooses trials by their metrics"
            return [Problem("search", why, "add tracker=wandb")]
        if (tracker.get("mode") or os.environ.get("WANDB_MODE", "online")) != "online":
            why = "is not online, but the server of a sweep needs the metrics of its runs"
            return [Problem("callbacks.wandb.mode", why, "leave it out, and unset WANDB_MODE")]
        return []

    def begin_with(self, store: StudyStore, points: Sequence[Mapping[str, Any]], own: Mapping[str, Any] | None) -> None:
        """The server chooses every trial."""

    def open(self, prepared: Prepared, store: StudyStore, jobs: int) -> None:
        super().open(prepared, store, jobs)
        import wandb

        tracker = self._tracker(prepared) or {}
        project, entity = tracker.get("project", "trireme"), tracker.get("entity")
        try:
            wandb.setup(wandb.Settings(silent=True))
            self.api = wandb.Api(overrides={"project": project, **({"entity": entity} if entity else {})})
            self.path = self._sweep(store, project, entity)
        except Exception as error:  # the login, the network or the server may fail
            fix = "wandb login, or set WANDB_API_KEY; WANDB_BASE_URL names a server of your own"
            raise UserError(Problem("search.engine", f"cannot reach W&B: {_brief(error)}", fix)) from None
        threading.Thread(target=self._beat, daemon=True).start()

    def claim(self) -> Claim | None:
        with self._claiming:
            with self.store.locked():
                claim = self.store.left(self.space_values)
                place = self.store.place() if claim is None else None
            if claim is None:
                claim = self._new(place) if place is not None else None
                if claim is None:
                    return None
            run = claim.noted(RUN)
            if run not in self.agents:
                self.agents[run] = self._agent()
            claim.variables = self._variables(claim, run)
            return claim

    def _new(self, place: int) -> Claim | None:
        """The trial that the server wants next; None if it wants none. Other workers ask it meanwhile, so each holds a
        place in the study."""
        try:
            found = self._next_run()
            if found is None:
                return None
            run, values = found
            with self.store.locked():
                return self.store.new(self.space_values, values, {RUN: run})
        finally:
            os.close(place)

    def verdict(self, claim: Claim, step: int, value: float) -> Verdict:
        super().verdict(claim, step, value)
        if claim.noted(RUN) not in self.stopped:
            return GO_ON
        return Verdict(f"{self.prepared.objective.names[0]} {value:.4g} at step {step}, by W&B")

    def ended(self, claim: Claim, values: Sequence[float] | None) -> None:
        agent = self.agents.pop(claim.noted(RUN), None)
        if agent is not None:
            self.free.append(agent)

    def leave(self) -> None:
        super().leave()
        self._woken.set()

    def close(self) -> None:
        import wandb

        self.leave()
        with self._lock:
            wandb.teardown()

    # -- the server ---------------------------------------------------------------------------------------------

    def _sweep(self, store: StudyStore, project: str, entity: str | None) -> tuple[str, str, str]:
        """Entity, project and id of the sweep: that of the study, the one to join, or a new one."""
        from wandb.apis.public import sweeps

        from ..run_search import say

        with store.locked():
            path = store.study.user_attrs.get(SWEEP) or self.sweep
            if path is None:
                made, _ = sweeps._upsert_sweep(self.api, self.described(), project=project, entity=entity)
                place = made.get("project") or {"name": project, "entity": {"name": entity or self.api.default_entity}}
                path = f"{place['entity']['name']}/{place['name']}/{made['name']}"
            *before, name = str(path).split("/")
            before = before if len(before) == 2 else [entity or self.api.default_entity, project]
            store.study.set_user_attr(SWEEP, "/".join([*before, name]))
        say(f"sweep {'/'.join([*before, name])}")
        return before[0], before[1], name

    def described(self) -> dict[str, Any]:
        """The sweep as W&B writes one."""
        name, mode = next(iter(self.prepared.objective.modes.items()))
        space: Any = self.prepared.space
        return {
            "name": self.prepared.name,
            "method": self.method,
            "metric": {"name": tag(name), "goal": f"{mode}imize"},
            "parameters": {each.name: described(each, self.method) for each in space.parameters},
            **({"early_terminate": self.early_terminate} if self.early_terminate else {}),
        }

    def _agent(self) -> str:
        """An agent without a run."""
        from wandb.apis.public import sweeps

        if self.free:
            return self.free.pop()
        entity, project, name = self.path
        with self._lock:
            return sweeps._register_agent(
                self.api, socket.gethostname(), sweep_id=name, project=project, entity=entity
            )["id"]

    def _next_run(self) -> tuple[str, Values] | None:
        """The id and values of the run that the server wants next; None if it wants none, or the search is left."""
        agent = self._agent()
        while not self.left:
            for command in self._ask(agent, {}):
                if command["type"] in ("run", "resume"):
                    self.agents[command["run_id"]] = agent
                    return command["run_id"], self._read(command["args"])
                if command["type"] == "exit":
                    self.free.append(agent)
                    return None
            self._woken.wait(HEARTBEAT_SECONDS)
        return None

    def _read(self, given: Mapping[str, Any]) -> Values:
        """Values of the study by those of the server.

        Raises:
            UserError: the sweep that was joined has another space.
        """
        space: Any = self.prepared.space
        values = {name: each["value"] if isinstance(each, Mapping) else each for name, each in given.items()}
        if values.keys() != set(space.keys):
            theirs, ours = ", ".join(sorted(values)), ", ".join(sorted(space.keys))
            fix = "search the same keys, or make a sweep of this space: search.engine.sweep=null"
            raise UserError(
                Problem("search.engine.sweep", f"varies {theirs}, and search.space {ours}", fix, self.sweep)
            )
        return {each.name: fitted(each, values[each.name]) for each in space.parameters}

    def _ask(self, agent: str, runs: dict[str, bool]) -> list[dict[str, Any]]:
        from wandb.apis.public import sweeps
        from wandb.sdk.sweeps import SweepNotFoundError

        try:
            with self._lock:
                return [] if self.left else sweeps._agent_heartbeat(self.api, agent, {}, runs)
        except SweepNotFoundError:
            raise UserError(
                Problem("search.engine.sweep", "is not there any more", "start over with --fresh", "/".join(self.path))
            ) from None

    def _beat(self) -> None:
        """Tell the server which runs are alive, and hear which ones shall end."""
        with suppress(UserError):  # a sweep that is gone is told when the next run is asked for
            while not self.left:
                for run, agent in list(self.agents.items()):
                    if any(command["type"] in ("stop", "exit") for command in self._ask(agent, {run: True})):
                        self.stopped.add(run)
                self._woken.wait(HEARTBEAT_SECONDS)

    # -- trials -------------------------------------------------------------------------------------------------

    def _variables(self, claim: Claim, run: str) -> dict[str, str]:
        """Variables that make a run part of the sweep. They name a file with its values, as those of W&B's agent do."""
        entity, _, name = self.path
        file = (Path(self.prepared.folder) / "wandb_sweep" / f"config-{run}.yaml").absolute()
        file.parent.mkdir(exist_ok=True)
        given = {key: {"value": value} for key, value in claim.trial.params.items()}
        file.write_text(yaml.safe_dump({"wandb_version": 1, **given}))
        return {
            "WANDB_SWEEP_ID": name,
            "WANDB_RUN_ID": run,
            "WANDB_SWEEP_PARAM_PATH": str(file),
            "WANDB_ENTITY": entity,
        }

    def _tracker(self, prepared: Prepared) -> dict[str, Any] | None:
        return next((each for each in prepared.recipe.callbacks.values() if each.get("_target_") == TRACKER), None)


def described(parameter: Parameter, method: str) -> dict[str, Any]:
    """A key's values as a parameter of a sweep."""
    if parameter.choices is not None:
        return {"values": [parameter.stored(choice) for choice in parameter.choices]}
    if parameter.step is not None or (method == "grid" and parameter.whole):
        return {"values": steps(replace(parameter, step=parameter.step or 1))}
    bounds = {"min": parameter.low, "max": parameter.high}
    if parameter.whole:
        log = {"distribution": "q_log_uniform_values", "q": 1, **bounds}
        return log if parameter.log else {"distribution": "int_uniform", **bounds}
    return {"distribution": "log_uniform_values" if parameter.log else "uniform", **bounds}


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
