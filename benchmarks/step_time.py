"""Time of a step through trireme over the same step written directly on DeepSpeed, FSDP2 and DTensor.

Both train the same model on the same batches with the same optimizer, clipping and logging cadence, on two gloo ranks.
They take turns in one run, in blocks of steps, so that a machine whose speed drifts slows both; trireme's steps are
those of ``Trainer.fit``, with data, schedule, record and the agreement of ranks. The median over pairs of neighbouring
blocks is the figure; quartiles show the noise.

    python benchmarks/step_time.py                                   # all three, some minutes on two cores
    python benchmarks/step_time.py --plans fsdp_full_shard --rounds 50
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
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from bare import LOG_EVERY, deepspeed_step, fsdp_step, tensor_step
from engine_overhead import Stopwatch
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from rich.console import Console
from rich.table import Table
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.run_folder import open_run_folder

BOUND = 1.02
RANKS = 2
BARE = {"zero2": deepspeed_step, "fsdp_full_shard": fsdp_step, "tp": tensor_step}
"""Plan -> the same step by hand."""
MODEL = [
    "model=llama_tiny",
    "model.config.vocab_size=1024",
    "model.config.hidden_size=128",
    "model.config.intermediate_size=352",
    "data.block_size=128",
    "trainer.global_batch_size=16",
    f"trainer.log_every={LOG_EVERY}",
    "trainer.eval_at_end=false",
    "checkpoint.at_end=false",
]


def overrides(plan: str, steps: int) -> list[str]:
    """Whole batches at once on every rank."""
    micro = 16 if plan == "tp" else 16 // RANKS
    return [*MODEL, f"plan={plan}", f"trainer.micro_batch_size={micro}", f"trainer.max_steps={steps}"]


def measure(run_dir: Path, plan: str, block: int, rounds: int, profiled: bool) -> tuple[list[float], list[float], str]:
    """Seconds per step of trireme and of the bare step, block by block in turn; on one rank."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = tiny_recipe(run_dir, *overrides(plan, block * (rounds + 1)))
    mesh = build_mesh(recipe.plan)
    if mesh.is_main:
        open_run_folder(run_dir, fresh=False)
    mesh.barrier()
    trainer = build(recipe, mesh)
    step = BARE[plan](trainer)
    batches = iter(trainer.corpus.train_batches({}, 0, 10**6, mesh.data_rank, mesh.data_size))
    bare: list[float] = []
    profile = cProfile.Profile()

    def between() -> None:
        profile.disable()
        start = time.perf_counter()
        for _ in range(block):
            step(next(batches))
        bare.append((time.perf_counter() - start) / block)
        if profiled:
            profile.enable()

    ours = Stopwatch(block, between)
    trainer.callbacks["stopwatch"] = ours
    trainer.fit()
    text = io.StringIO()
    if profiled:
        profile.disable()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(45)
    return ours.seconds[1:], bare[1:], text.getvalue()  # the first round warms both up


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", default=",".join(BARE), help="comma separated")
    parser.add_argument("--block", type=int, default=5, help="steps in turn")
    parser.add_argument("--rounds", type=int, default=40, help="turns of each")
    parser.add_argument("--profile", action="store_true", help="profile trireme's steps on rank 0 (slows them)")
    options = parser.parse_args(argv)
    plans = options.plans.split(",")
    if "zero2" in plans:
        from trireme.parallel.zero.library import import_deepspeed

        import_deepspeed()
    table = Table("plan", "written on", "bare, ms", "trireme, ms", "ratio", "half of the pairs", title="time of a step")
    console, failures = Console(width=None if sys.stdout.isatty() else 160), 0
    for plan in plans:
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
            arguments = (Path(folder) / "run", plan, options.block, options.rounds, options.profile)
            ours, theirs, profile = run_ranks(measure, RANKS, *arguments, timeout=3600)[0]
        low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
        times = [f"{1e3 * statistics.median(seconds):.1f}" for seconds in (theirs, ours)]
        written = BARE[plan].__name__.removesuffix("_step")
        table.add_row(plan, written, *times, f"{middle:.4f}", f"{low:.4f} to {high:.4f}")
        failures += middle >= BOUND
        print(profile, end="")
    console.print(table)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
