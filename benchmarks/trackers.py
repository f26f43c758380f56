"""Measure how much time an experiment tracker adds to a logged training step (target: under 0.1 ms).

    python benchmarks/trackers.py [NAME ...] [--steps 3000]

Fourteen metrics are reported after each step of every second turn, as with ``trainer.log_every=1``. *In the loop*: the
time that the training loop spends in the call to the tracker. *Thread*: CPU time per step of the tracker's thread,
which runs beside the loop but competes for Python's lock. *Slow-down*: the additional time of a step of some
milliseconds (a matrix product on one core) with the tracker: the median over turns with it, less the median over turns
without. For libraries that are not installed beside trireme: ``build/trackers/NAME/bin/python benchmarks/trackers.py
NAME`` after ``make trackers``.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from trireme.trainer.trackers.registry import installed_trackers, tracker_class
from trireme.trainer.trackers.tracker import Tracker
from trireme.trainer.trainer_state import Control, TrainerState

OPTIONS: dict[str, dict[str, Any]] = {
    "wandb": {"mode": "offline"}, "comet": {"mode": "offline"}, "neptune": {"mode": "offline"},
    "clearml": {"mode": "offline"}, "swanlab": {"mode": "offline"}, "codecarbon": {"country": "DEU"},
}  # fmt: skip
LEFT_OUT = ("flyte", "dagshub", "azureml")
LINE = {f"number_{index}": 0.1 * index for index in range(11)} | {"epoch": 0.5, "loss": 2.0, "lr": 1e-3}
TURN = 100


@dataclass
class Run:
    """The fields of a recipe's ``run`` that trackers read."""

    group: str | None = None
    trial: int | None = None


@dataclass
class Recipe:
    """The fields of a recipe that trackers read."""

    run: Run = field(default_factory=Run)
    seed: int = 0


def trainer_in(folder: Path) -> Any:
    mesh = SimpleNamespace(is_main=True, world_size=1, device=torch.device("cpu"))
    state = TrainerState(max_steps=10**6, stop_at=10**6)
    return SimpleNamespace(
        mesh=mesh, run_dir=folder, recipe=Recipe(), state=state,
        control=Control(), history=SimpleNamespace(lines=[]), metrics={}, extra_metrics={},
        blueprint=torch.nn.Linear(1, 1),
    )  # fmt: skip


def measure(cls: type[Tracker], folder: Path, steps: int) -> list[str]:
    """Measure one tracker; returns its row of the table."""
    folder.mkdir(parents=True)
    trainer = trainer_in(folder)
    tracker = cls(**OPTIONS.get(cls.KEY, {}))
    write, spent = tracker.write, [0.0]

    def timed(lines: Any) -> None:
        began = time.thread_time()
        write(lines)
        spent[0] += time.thread_time() - began

    tracker.write = timed  # type: ignore[method-assign]
    began = time.perf_counter()
    tracker.on_train_begin(trainer, trainer.state, trainer.control)
    start = time.perf_counter() - began
    if tracker._sender is None:
        raise SystemExit(f"{cls.TITLE} did not begin, so there is nothing to measure")
    calls, slower = drive(lambda line: tracker.on_log(trainer, trainer.state, trainer.control, line), steps)
    tracker.on_train_end(trainer, trainer.state, trainer.control)
    began = time.perf_counter()
    tracker.close()
    end = time.perf_counter() - began
    thread = spent[0] / (steps // 2)
    return [cls.KEY, *(f"{1e3 * value:.4f}" for value in (calls, thread, slower)), f"{start:.1f}", f"{end:.1f}"]


def drive(log: Callable[[dict[str, Any]], None], steps: int) -> tuple[float, float]:
    """The mean seconds of a call, and the additional seconds of a step in turns with the tracker."""
    matrix, calls = torch.ones(320, 320), []
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(steps // TURN):
        reports = turn % 2 == 0
        began = time.perf_counter()
        for step in range(turn * TURN, (turn + 1) * TURN):
            torch.mm(matrix, matrix)
            if reports:
                before = time.perf_counter()
                log({"step": step + 1, **LINE})
                calls.append(time.perf_counter() - before)
        took[reports].append((time.perf_counter() - began) / TURN)
    return statistics.fmean(calls), statistics.median(took[True]) - statistics.median(took[False])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="trackers; without any, those that are installed and work locally")
    parser.add_argument("--steps", type=int, default=3000)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("trireme").setLevel(logging.ERROR)
    found = [tracker_class(name) for name in options.names]
    found = found or [cls for cls in installed_trackers() if cls.KEY not in LEFT_OUT]
    print("| tracker | in the loop, ms | thread, ms | slow-down of a step, ms | start, s | end, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    place = Path(tempfile.mkdtemp(prefix="trackers-"))
    # Removed last: libraries that are imported later write to it at exit.
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for cls in found:
        print(f"| {' | '.join(measure(cls, place / cls.KEY / 'run', options.steps))} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
