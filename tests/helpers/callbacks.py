"""Callbacks that recipes of the tests name by ``_target_``."""

from __future__ import annotations

import os
import time

from trireme.trainer.callbacks.callback import Callback


class StopOnOneRank(Callback):
    """Asks to stop on one rank only."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_end(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.step == self.step:
            control.request_stop("this rank has had enough")


class Recorder(Callback):
    """Writes every event it sees, with the step, to a file per rank."""

    def __init__(self, path: str) -> None:
        self.path, self.seen = path, []

    def __getattribute__(self, name: str):
        if name.startswith("on_"):
            return lambda trainer, state, control, *rest: self.seen.append(f"{name[3:]} {state.step}")
        return super().__getattribute__(name)

    def close(self) -> None:
        with open(f"{self.path}.{os.environ.get('RANK', 0)}", "w") as file:
            file.write("\n".join(self.seen))


class Remember(Callback):
    """Counts steps across resumes."""

    count = 0

    def on_step_end(self, trainer, state, control) -> None:
        self.count += 1
        trainer.extra_metrics["remembered"] = self.count

    def state_dict(self) -> dict:
        return {"count": self.count}

    def load_state_dict(self, state: dict) -> None:
        self.count = state["count"]


class Slow(Callback):
    """Makes steps long enough to be met by a signal."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_begin(self, trainer, state, control) -> None:
        time.sleep(self.seconds)


class Stuck(Callback):
    """One rank does not come back from a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_step_begin(self, trainer, state, control) -> None:
        if trainer.mesh.rank == self.rank and state.step == self.step:
            while True:
                time.sleep(0.1)
