"""Compare the time of a trireme training step with the same step written directly with DeepSpeed, FSDP2 or DTensor.

Both train the same model on the same batches with the same optimizer, clipping and logging interval, on two gloo ranks.
They take turns in one run, in blocks of steps, so that changes in the machine's speed affect both. trireme's steps are
those of ``Trainer.fit``, with data loading, schedule, metrics, and the messages by which ranks agree to log, save or
stop. The result is the median ratio over pairs of neighbouring blocks, with quartiles.

On a busy machine two other ratios are more reliable: that of the fastest tenth of the blocks, which other load has not
disturbed, and that of CPU time. trireme's own work does not grow with the model, so the difference is also measured on
a tiny model (fastest tenth).

    python benchmarks/step_time.py                                   # all three, about ten minutes on two cores
    python benchmarks/step_time.py --plans fsdp_full_shard --rounds 20
    python benchmarks/step_time.py --plans tp --profile              # where rank 0 spends its time, by function
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import logging
import os
import pstats
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from bare_steps import LOG_EVERY, LossReader, deepspeed_step, fsdp_step, tensor_step
from helpers.metrics import training
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from rich.console import Console
from rich.table import Table
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.run_folder import open_run_folder

BOUND = 1.02
RANKS = 2
BARE = {"zero2": deepspeed_step, "fsdp_full_shard": fsdp_step, "tp": tensor_step}
"""Plan -> the same step written directly with the library."""
COMMON = ["model=llama_tiny", f"trainer.log_every={LOG_EVERY}", "trainer.eval_at_end=false", "checkpoint.at_end=false"]
SIZES = {
    "usual": {"hidden": 128, "vocabulary": 1024, "length": 128, "batch": 16},
    "none": {"hidden": 16, "vocabulary": 512, "length": 8, "batch": 2},
}
"""Steps of about 100 ms on two idle cores, and steps of almost no work."""


@dataclass
class Times:
    """Seconds per step of each block, by the clock and on the processor."""

    block: int
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def start(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall.append((time.perf_counter() - self._wall) / self.block)
        self.processor.append((time.process_time() - self._processor) / self.block)


class Turns(Callback):
    """Times each block of trireme's steps, and runs a block of the bare steps after it."""

    def __init__(self, block: int, other: Callable[[], None], profile: cProfile.Profile | None) -> None:
        self.times, self.other, self.profile = Times(block), other, profile

    def on_train_begin(self, trainer, state, control) -> None:
        self.times.start()

    def on_step_end(self, trainer, state, control) -> None:
        if state.step % self.times.block == 0:
            self.times.stop()
            if self.profile:
                self.profile.disable()
            self.other()
            if self.profile:
                self.profile.enable()
            self.times.start()


def overrides(plan: str, size: dict[str, int], steps: int) -> list[str]:
    """The overrides of the recipe: every rank takes its share of the batch in one micro-batch."""
    return [
        *COMMON,
        f"plan={plan}",
        f"model.config.hidden_size={size['hidden']}",
        f"model.config.intermediate_size={11 * size['hidden'] // 4}",
        f"model.config.vocab_size={size['vocabulary']}",
        f"data.block_size={size['length']}",
        f"trainer.global_batch_size={size['batch']}",
        f"trainer.micro_batch_size={size['batch'] // (1 if plan == 'tp' else RANKS)}",
        f"trainer.max_steps={steps}",
    ]


def measure(
    run_dir: Path, plan: str, size: dict[str, int], block: int, rounds: int, profiled: bool
) -> tuple[Times, Times, str]:
    """Times of trireme and of the bare step, and the profile, on one rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = tiny_recipe(run_dir, *overrides(plan, size, block * (rounds + 1)))
    mesh = build_mesh(recipe.plan)
    if mesh.is_main:
        open_run_folder(run_dir, fresh=False)
    mesh.barrier()
    trainer = build(recipe, mesh)
    read_loss, bare = LossReader(mesh.data_group), Times(block)
    step = BARE[plan](trainer, read_loss)
    batches = iter(trainer.corpus.train_batches({}, 0, 10**6, mesh.data_rank, mesh.data_size))

    def other() -> None:
        bare.start()
        for _ in range(block):
            step(next(batches))
        bare.stop()

    profile, text = cProfile.Profile() if profiled else None, io.StringIO()
    turns = Turns(block, other, profile)
    trainer.callbacks["turns"] = turns
    trainer.fit()
    if mesh.is_main:
        _same_training(run_dir, read_loss.losses)
    if profile:
        profile.disable()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(45)
    return turns.times, bare, text.getvalue()


def _same_training(run_dir: Path, theirs: list[float]) -> None:
    """Check by the first losses that both sides train alike; later ones differ by rounding."""
    ours = [line["loss"] for line in training(run_dir) if line["step"] % LOG_EVERY == 0]
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        assert abs(one - other) < 1e-4 * one, f"losses differ: {ours[:2]} and {theirs[:2]}"


def on_ranks(plan: str, size: str, block: int, rounds: int, profiled: bool = False) -> tuple[Times, Times, str]:
    """The result of ``measure`` on rank 0, without the first round, which warms both sides up."""
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        arguments = (Path(folder) / "run", plan, SIZES[size], block, rounds, profiled)
        ours, theirs, profile = run_ranks(measure, RANKS, *arguments, timeout=3600)[0]
    for times in (ours, theirs):
        del times.wall[0], times.processor[0]
    return ours, theirs, profile


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)


def quickest(seconds: list[float]) -> float:
    """The lowest decile."""
    return statistics.quantiles(seconds, n=10)[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", default=",".join(BARE), help="comma separated")
    parser.add_argument("--block", type=int, default=2, help="steps per block")
    parser.add_argument("--rounds", type=int, default=200, help="blocks of each side")
    parser.add_argument("--profile", action="store_true", help="profile trireme's steps on rank 0 (slows them)")
    options = parser.parse_args(argv)
    plans = options.plans.split(",")
    if "zero2" in plans:
        from trireme.parallel.zero.library import import_deepspeed

        import_deepspeed()  # once, not in every rank
    columns = ("plan", "bare, ms", "trireme, ms", "ratio", "half of the pairs", "quickest", "processor", "own work, ms")
    table = Table(*columns, title=f"time of a step, {options.rounds} pairs of {options.block} steps")
    failures = 0
    for plan in plans:
        ours, theirs, profile = on_ranks(plan, "usual", options.block, options.rounds, options.profile)
        print(profile, end="")
        cells = [f"{1e3 * statistics.median(times.wall):.1f}" for times in (theirs, ours)]
        low, middle, high = ratios(ours.wall, theirs.wall)
        failures += middle >= BOUND
        cells += [f"{middle:.4f}", f"{low:.4f} to {high:.4f}", f"{quickest(ours.wall) / quickest(theirs.wall):.4f}"]
        cells.append(f"{ratios(ours.processor, theirs.processor)[1]:.4f}")
        ours, theirs, _ = on_ranks(plan, "none", options.block, 2 * options.rounds)
        table.add_row(plan, *cells, f"{1e3 * (quickest(ours.wall) - quickest(theirs.wall)):.2f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
