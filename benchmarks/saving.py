"""Measure how long saving a checkpoint delays training, when it is written synchronously and in the background.

One run of a model with a large state alternates between four phases: plain steps; a synchronous save; plain steps; and
an asynchronous save, with the steps until it is complete. *Stall* is the time that the training loop waits: inside the
save call, and before the next optimizer step for copies that are not finished. *Slow-down* is the additional time of
the steps during the writing, compared with equally many plain steps. On a CPU, steps slow down because the writing
thread uses the same cores.

    python benchmarks/saving.py                           # one process and two ranks, minutes
    python benchmarks/saving.py --plans single --rounds 9 --folder /scratch
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from rich.console import Console
from rich.table import Table
from trireme.parallel.clip import local
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.run_folder import open_run_folder

BOUND = 0.10
RANKS = {"single": 1}
"""Plan -> ranks; two for all others."""
COMMON = ["model=llama_tiny", "trainer.eval_at_end=false", "checkpoint.at_end=false", "checkpoint.keep_last=1"]


@dataclass
class Round:
    """Seconds of one synchronous and one asynchronous save, measured by rank 0."""

    synchronous: float = 0.0
    stall: float = 0.0
    waited: float = 0.0
    """The part of ``stall`` before the next optimizer step."""
    steps: int = 0
    """Steps while the checkpoint was written in the background."""
    slowdown: float = 0.0
    """Seconds by which these steps together took longer than as many plain steps."""


@dataclass
class Measured:
    parameters: int
    state: float
    """MiB of state that this rank writes or holds a copy of."""
    rounds: list[Round] = field(default_factory=list)


class Turns(Callback):
    """Repeats plain steps, a synchronous save, plain steps and an asynchronous save, and measures them."""

    def __init__(self, block: int, rounds: int) -> None:
        self.block, self.rounds = block, rounds
        self.done: list[Round] = []
        self.turn, self.count, self.plain = Round(), 0, 0.0

    def on_train_begin(self, trainer, state, control) -> None:
        self.started = time.perf_counter()
        wait_for_copies = trainer.store.wait_for_copies

        def timed() -> None:
            begun = time.perf_counter()
            wait_for_copies()
            if trainer.store.in_flight and self.turn.synchronous:
                self.turn.waited += time.perf_counter() - begun

        trainer.store.wait_for_copies = timed

    def on_step_end(self, trainer, state, control) -> None:
        self.count += 1
        if trainer.store.in_flight or self.count < self.block:
            return
        self.plain = (time.perf_counter() - self.started) / self.count
        begun = time.perf_counter()
        trainer.save(wait=not self.turn.synchronous)
        seconds = time.perf_counter() - begun
        if trainer.store.in_flight:
            self.turn.stall = seconds
        else:
            self.turn.synchronous = seconds
        self.count, self.started = 0, time.perf_counter()

    def on_save(self, trainer, state, control, path: Path) -> None:
        if not self.turn.synchronous:
            return
        self.turn.steps = self.count
        self.turn.slowdown = time.perf_counter() - self.started - self.count * self.plain - self.turn.waited
        self.turn.stall += self.turn.waited
        self.done.append(self.turn)
        self.turn, self.count, self.started = Round(), 0, time.perf_counter()
        if len(self.done) == self.rounds:
            control.request_stop("measured")


def measure(run_dir: Path, plan: str, size: dict[str, int], block: int, rounds: int) -> Measured:
    """Measure one run on the existing ranks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = tiny_recipe(run_dir, *COMMON, f"plan={plan}", *_overrides(size))
    mesh = build_mesh(recipe.plan)
    if mesh.is_main:
        open_run_folder(run_dir, fresh=False)
    mesh.barrier()
    trainer = build(recipe, mesh)
    turns = trainer.callbacks["turns"] = Turns(block, rounds)
    trainer.fit()
    state = sum(local(tensor).nbytes for tensor in trainer.saving.tensors().values()) / 2**20
    mesh.close()
    parameters = sum(parameter.numel() for parameter in trainer.blueprint.parameters())
    return Measured(parameters, state, turns.done)


def _overrides(size: dict[str, int]) -> list[str]:
    return [
        f"model.config.hidden_size={size['hidden']}",
        f"model.config.intermediate_size={4 * size['hidden']}",
        f"model.config.num_hidden_layers={size['layers']}",
        f"data.block_size={size['length']}",
        f"trainer.global_batch_size={size['batch']}",
        "trainer.micro_batch_size=1",
        "trainer.max_steps=100000",
        "trainer.log_every=1000",
    ]


def on_ranks(plan: str, size: dict[str, int], block: int, rounds: int, folder: str | None = None) -> Measured:
    """The result of ``measure`` on rank 0."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=folder) as place, contextlib.redirect_stdout(io.StringIO()):
        os.environ.setdefault("TRIREME_CACHE", f"{place}/cache")
        arguments = (Path(place) / "run", plan, size, block, rounds)
        return run_ranks(measure, RANKS.get(plan, 2), *arguments, timeout=3600)[0]


def row(plan: str, measured: Measured) -> tuple[list[str], float]:
    """Cells of the table, and the stall as a part of the synchronous save. The first round is shown apart."""
    first, *rounds = measured.rounds
    middle = {
        name: statistics.median(getattr(turn, name) for turn in rounds)
        for name in ("synchronous", "stall", "steps", "slowdown")
    }
    part = statistics.median(turn.stall / turn.synchronous for turn in rounds)
    whole = statistics.median((turn.stall + turn.slowdown) / turn.synchronous for turn in rounds)
    cells = [plan, str(RANKS.get(plan, 2)), f"{measured.parameters / 1e6:.0f}", f"{measured.state:.0f}"]
    cells += [f"{middle['synchronous']:.2f}", f"{middle['stall']:.3f}", f"{100 * part:.1f} %", f"{first.stall:.3f}"]
    return [*cells, f"{middle['steps']:.0f}", f"{middle['slowdown']:.2f}", f"{100 * whole:.0f} %"], part


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", default="single,ddp,fsdp_full_shard", help="comma separated")
    parser.add_argument("--rounds", type=int, default=6, help="saves of each kind; the first is shown separately")
    parser.add_argument("--block", type=int, default=8, help="plain steps before each save")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--folder", help="where checkpoints are written (default: the system's temporary folder)")
    options = parser.parse_args(argv)
    size = {"hidden": options.hidden, "layers": options.layers, "length": 32, "batch": 2}
    columns = ("plan", "ranks", "M parameters", "MiB a rank", "synchronous, s", "stall, s", "of synchronous")
    table = Table(
        *columns, "first stall, s", "steps meanwhile", "slow-down, s", "with slow-down", title="saving a checkpoint"
    )
    failures = 0
    for plan in options.plans.split(","):
        cells, part = row(plan, on_ranks(plan, size, options.block, options.rounds, options.folder))
        table.add_row(*cells)
        failures += part > BOUND
    Console(width=None if sys.stdout.isatty() else 180).print(table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
