"""A local server that imitates W&B's sweeps: it gives runs to agents, and tells them which runs to stop.

The test lists the hyperparameter values. With ``engine``, W&B's own library ``sweeps`` chooses them, as W&B's server
does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from helpers.loopback import serving
from helpers.wandb_server import WandbServer


class SweepServer(WandbServer):
    """The state of the server and of its one sweep.

    Args:
        points: values of the runs to hand out, one after the other; then agents are told to leave.
        worse_than: a value of the metric from which a running run is ended.
        engine: have ``sweeps`` choose and end runs.
    """

    def __init__(self, points: Sequence[dict[str, Any]] = (), worse_than: float = float("inf"), engine: bool = False):
        super().__init__()
        self.points, self.worse_than, self.engine = list(points), worse_than, engine
        self.sweep: dict[str, Any] = {}
        self.agents: list[str] = []
        self.handed: dict[str, dict[str, Any]] = {}
        self.told_to_end: set[str] = set()
        self._lock = threading.Lock()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertSweep":
            self.sweep = yaml.safe_load(variables["config"])
            project = {"id": "p", "name": variables["projectName"], "entity": {"id": "e", "name": "me"}}
            return {"upsertSweep": {"sweep": {"name": "sweep1", "project": project}, "configValidationWarnings": []}}
        if operation == "CreateAgent":
            assert variables["sweep"] == "sweep1"
            self.agents.append(f"agent{len(self.agents)}")
            return {"createAgent": {"agent": {"id": self.agents[-1]}}}
        if operation == "Heartbeat":
            with self._lock:
                commands = self._commands(json.loads(variables["runState"]))
            return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}
        return super().answer(operation, variables)

    def values(self, run: str) -> list[float]:
        """Values of the sweep's metric that a run has reported."""
        name = self.sweep["metric"]["name"]
        return [line[name] for line in self.runs.get(run, {"history": []})["history"] if name in line]

    def _commands(self, alive: dict[str, bool]) -> list[dict[str, Any]]:
        if alive:
            ending = [run for run in self._to_end() if run in alive and run not in self.told_to_end]
            self.told_to_end |= set(ending)
            return [{"type": "stop", "run_id": run} for run in ending]
        values = self._next()
        if values is None:
            return [{"type": "exit"}]
        run = f"run{len(self.handed)}"
        self.handed[run] = values
        return [{"type": "run", "run_id": run, "args": {name: {"value": value} for name, value in values.items()}}]

    def _next(self) -> dict[str, Any] | None:
        if not self.engine:
            return self.points.pop(0) if self.points else None
        import sweeps

        found = sweeps.next_run(self.sweep, self._known(), validate=True)
        return None if found is None else {name: each["value"] for name, each in found.config.items()}

    def _to_end(self) -> list[str]:
        if not self.engine:
            return [run for run in self.handed if any(value > self.worse_than for value in self.values(run))]
        if "early_terminate" not in self.sweep:
            return []
        import sweeps

        return [str(run.name) for run in sweeps.stop_runs(self.sweep, self._known(), validate=True)]

    def _known(self) -> list[Any]:
        """The sweep's runs as the library wants them."""
        import sweeps

        name, found = self.sweep["metric"]["name"], []
        for run, values in self.handed.items():
            seen = self.values(run)
            ended = self.runs.get(run, {"exit": None})["exit"]
            found.append(
                sweeps.SweepRun(
                    name=run,
                    state=sweeps.RunState.running if ended is None else sweeps.RunState.finished,
                    config={key: {"value": value} for key, value in values.items()},
                    history=[{name: value} for value in seen],
                    summary_metrics={name: seen[-1]} if seen else {},
                )
            )
        return found


@contextmanager
def sweep_server(**options: Any) -> Iterator[SweepServer]:
    """Context with a server of one sweep; ``options`` are those of ``SweepServer``."""
    state = SweepServer(**options)
    with serving(state.reply) as url:
        state.url = url
        yield state
