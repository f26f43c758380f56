"""Compare each parallelism plan's communicated bytes, memory and pipeline idle time with theoretical formulas.

    python benchmarks/communication.py                       # every plan, some minutes on two cores
    python benchmarks/communication.py --plans ddp,zero2,tp --micro-batches 2

Every plan trains a Llama of 5 million parameters on real gloo ranks. In the third step, the bytes that each rank sends
are counted by collective (``parallel/traffic.py``) and compared with the plan's formula (``theory.py``), within 2 %. In
the fourth step, the memory of each rank is compared in the same way (``live_memory.py``), within 5 %. The exit code is
1 if a comparison fails.

If a DeepSpeed plan misses its formula, the same step runs on DeepSpeed alone with the same JSON. This shows whether
DeepSpeed or trireme sends the extra bytes. Further overrides of the recipe can be given as arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from bare_steps import LossReader, deepspeed_step
from helpers.micro_batches import loss_of
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from live_memory import OTHER, most_held, swapped
from parity.matrix import LAYOUTS, SPREAD
from pipeline_idle import idle_fraction
from rich.console import Console
from rich.table import Table
from theory import Sizes, expected_states, expected_traffic, formula
from trireme.parallel.held_memory import STATES
from trireme.parallel.mesh import build_mesh
from trireme.parallel.pipeline.check_pipeline import can_run
from trireme.parallel.traffic import BOOKKEEPING, KINDS, Traffic
from trireme.trainer.build import build

SENT_BOUND, HELD_BOUND = 0.02, 0.05
LAYERS, HIDDEN, ROWS, LENGTH = 4, 256, 2, 64
MODEL = [
    "model=llama_tiny",
    "model.config.vocab_size=4096",
    f"model.config.hidden_size={HIDDEN}",
    "model.config.intermediate_size=704",
    f"data.block_size={LENGTH}",
    f"trainer.micro_batch_size={ROWS}",
]
COLLECTIVES = [kind for kind in dict.fromkeys(KINDS.values()) if kind]
PIPELINES = [(2, 2), (2, 8), (4, 4), (4, 8), (4, 16), (8, 32)]
"""Pairs of ranks and micro-batches in the table of idle times."""


@dataclass
class Found:
    """The bytes that one rank sent and held."""

    sent: dict[str, float]
    expected: dict[str, float]
    held: dict[str, float]
    expected_held: dict[str, float]
    parameters: int
    formula: str
    deepspeed: dict[str, float] = field(default_factory=dict)
    """Bytes that DeepSpeed alone sends."""

    @property
    def sent_deviation(self) -> float:
        return deviation(self.sent, self.expected)

    @property
    def held_deviation(self) -> float:
        return deviation({kind: self.held[kind] for kind in STATES}, self.expected_held)


def deviation(found: dict[str, float], expected: dict[str, float]) -> float:
    """The largest difference of a kind of traffic, relative to the expected sum, without bookkeeping."""
    found, expected = _pieces(found), _pieces(expected)
    kinds = {*found, *expected} - {BOOKKEEPING}
    return max(abs(found.get(kind, 0) - expected.get(kind, 0)) for kind in kinds) / sum(expected.values())


def _pieces(sent: dict[str, float]) -> dict[str, float]:
    """Count reductions of each piece to its owner as a reduce-scatter."""
    return {**sent, "reduce-scatter": sent.get("reduce-scatter", 0) + sent.get("reduce", 0), "reduce": 0}


def overrides(plan: str, folder: str, micro_batches: int) -> list[str]:
    """The overrides of a plan's recipe. All stages have the same depth, since the formulas do not model uneven ones."""
    layout = LAYOUTS[plan]
    found = [*MODEL, f"plan={plan}", f"trainer.global_batch_size={ROWS * micro_batches * layout.data}"]
    if plan == "zero3_nvme":
        found.append(f"plan.deepspeed.offload_optimizer.nvme_path={folder}")
    if plan.startswith("zero3"):
        # By default DeepSpeed keeps gathered parameters that are reused within 1e9 parameters: here, the whole model.
        found += ["plan.deepspeed.stage3_max_reuse_distance=0", "plan.deepspeed.stage3_prefetch_bucket_size=0"]
    if plan in ("pp_interleaved", "pp_zero_bubble"):
        found.append("plan.pipelining.split=[1,1,1,1]")
    elif layout.least > 1:
        found.append("plan.pipelining.split=[2,2]")
    return found


def measure(run_dir: Path, recipe_overrides: list[str], folder: Path) -> Found:
    """Measure the bytes that one rank sends and holds."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    recipe = tiny_recipe(run_dir, *recipe_overrides)
    mesh = build_mesh(recipe.plan)
    trainer = build(recipe, mesh)
    strategy, loss = trainer.strategy, loss_of(trainer.task)
    batches = iter(trainer.corpus.train_batches({}, 0, 10, mesh.data_rank, mesh.data_size))
    for _ in range(2):  # optimizer state, DDP's buckets and DeepSpeed's trace are made in the first steps
        strategy.forward_backward(next(batches), loss)
        strategy.optimizer_step(1.0, 1.0)
    batch = next(batches)
    with Traffic() as traffic:
        strategy.forward_backward(batch, loss)
        strategy.optimizer_step(1.0, 1.0)
    parameters = {name: parameter.numel() for name, parameter in trainer.blueprint.named_parameters()}
    sizes = Sizes(parameters, LAYERS, HIDDEN, len(batch.micro_batches), ROWS, LENGTH)
    held = most_held(strategy, next(batches), loss)
    held["optimizer"] += swapped(folder, mesh.rank)
    found = Found(
        dict(traffic.sent),
        dict(expected_traffic(recipe.plan, mesh, sizes)),
        held,
        expected_states(recipe.plan, mesh, sizes),
        sum(parameters.values()),
        formula(recipe.plan, mesh),
    )
    if recipe.plan.uses_deepspeed and found.sent_deviation > SENT_BOUND:
        strategy.optimizer_step(1.0, 1.0)
        step = deepspeed_step(trainer, LossReader(mesh.data_group))
        for _ in range(2):
            step(next(batches))
        with Traffic() as alone:
            step(next(batches))
        found.deepspeed = dict(alone.sent)
    return found


def measure_plan(plan: str, micro_batches: int, further: Sequence[str] = ()) -> list[Found]:
    """Measure every rank of a plan; the log lines of the runs are not shown."""
    layout = LAYOUTS[plan]
    micro_batches = max(micro_batches, layout.least)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        recipe = [*overrides(plan, folder, micro_batches), *further]
        return run_ranks(measure, layout.ranks, Path(folder) / "run", recipe, Path(folder), timeout=600)


def traffic_table(results: dict[str, list[Found]]) -> tuple[Table, list[str]]:
    """The table of the rank that sends most, and the values of any rank that are out of bounds."""
    table = Table(
        "plan", "ranks", "formula", "by collective, MiB", "sum", "expected", "off", "bookkeeping", "DeepSpeed alone"
    )
    failures = []
    for plan, ranks in results.items():
        most = max(ranks, key=lambda found: sum(found.expected.values()))
        kinds = [f"{kind} {_mib(most.sent[kind])}" for kind in COLLECTIVES if most.sent.get(kind)]
        sent = sum(size for kind, size in most.sent.items() if kind != BOOKKEEPING)
        alone = max((deviation(found.sent, found.deepspeed) for found in ranks if found.deepspeed), default=None)
        row = [_mib(sent), _mib(sum(most.expected.values())), f"{sent / sum(most.expected.values()) - 1:+.2%}"]
        book = f"{most.sent.get(BOOKKEEPING, 0):.0f} B"
        table.add_row(plan, str(len(ranks)), most.formula, ", ".join(kinds), *row, book, _alone(alone))
        for rank, found in enumerate(ranks):
            if found.sent_deviation > SENT_BOUND:
                failures.append(f"{plan}: rank {rank} sends {found.sent}, expected {found.expected}")
    return table, failures


def states_table(results: dict[str, list[Found]]) -> tuple[Table, list[str]]:
    """The table of the rank that holds most, and the values of any rank that are out of bounds."""
    table = Table(
        "plan", "ranks", *(f"{state}, MiB (expected)" for state in STATES), "off", "bytes per parameter", "other, MiB"
    )
    failures = []
    for plan, ranks in results.items():
        most = max(ranks, key=lambda found: sum(found.expected_held.values()))
        cells = [f"{_mib(most.held[state])} ({_mib(most.expected_held[state])})" for state in STATES]
        held = sum(most.held[state] for state in STATES)
        each = f"{held / most.parameters:.2f}"
        off = f"{held / sum(most.expected_held.values()) - 1:+.2%}"
        table.add_row(plan, str(len(ranks)), *cells, off, each, _mib(most.held[OTHER]))
        for rank, found in enumerate(ranks):
            if found.held_deviation > HELD_BOUND:
                failures.append(f"{plan}: rank {rank} holds {found.held}, expected {found.expected_held}")
    return table, failures


def idle_table() -> tuple[Table, list[str]]:
    """Idle share of torch's schedules; of 1F1B and GPipe it must be (p - 1) / (m + p - 1)."""
    schedules = (
        "gpipe",
        "1f1b",
        "interleaved_1f1b",
        "looped_bfs",
        "interleaved_zero_bubble",
        "zbv_zero_bubble",
        "dualpipev",
    )
    table = Table("ranks p", "micro-batches m", "(p-1)/(m+p-1)", *schedules)
    failures = []
    for ranks, micro_batches in PIPELINES:
        theory = (ranks - 1) / (micro_batches + ranks - 1)
        possible = {name: can_run(name, ranks, micro_batches) for name in schedules}
        found = {name: idle_fraction(name, ranks, micro_batches) for name in schedules if possible[name]}
        cells = [f"{found[name]:.4f}" if name in found else "-" for name in schedules]
        table.add_row(str(ranks), str(micro_batches), f"{theory:.4f}", *cells)
        for name in ("gpipe", "1f1b"):
            if abs(found[name] - theory) > 1e-9:
                failures.append(
                    f"{name} with {ranks} ranks and {micro_batches} micro-batches: {found[name]}, not {theory}"
                )
    return table, failures


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f}"


def _alone(off: float | None) -> str:
    return "" if off is None else f"the same ({off:.2%} off)" if off <= SENT_BOUND else f"{off:.2%} off"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plans", default=",".join(SPREAD), help="comma separated")
    parser.add_argument("--micro-batches", type=int, default=1, help="of a step; pipelines run at least two")
    parser.add_argument("overrides", nargs="*", help="for every plan, such as plan.deepspeed.reduce_bucket_size=1000")
    options = parser.parse_args(argv)
    plans = options.plans.split(",")
    if any(plan.startswith("zero") for plan in plans):
        from trireme.parallel.zero.library import import_deepspeed

        import_deepspeed()  # once, not in every rank
    results = {}
    console, failures = Console(width=None if sys.stdout.isatty() else 220), []
    with tempfile.TemporaryDirectory() as cache:
        os.environ.setdefault("TRIREME_CACHE", cache)
        for plan in plans:
            console.print(f"{plan} ...", style="dim")
            try:
                results[plan] = measure_plan(plan, options.micro_batches, options.overrides)
            except AssertionError as error:
                failures.append(f"{plan}: {error}")
    for title, (table, failed) in {
        f"bytes sent per rank and step, bound {SENT_BOUND:.0%}": traffic_table(results),
        f"bytes held per rank between backward pass and step, fp32 AdamW, bound {HELD_BOUND:.0%}": states_table(
            results
        ),
        "share of time in which pipeline ranks wait": idle_table(),
    }.items():
        table.title = title
        console.print(table)
        failures += failed
    print("\n".join(failures) or "all bounds hold")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
