"""Train packed documents under several parallelism plans, and compare with training each document in a row of its own.
Runs with dropout and NEFTune, packed or padded, are compared with the same run in one process.

Every decoder trains with SGD in fp32, and each step uses the same twelve documents. The reference is one process with
one document per row. Under each plan ``data.packing=bins`` packs the documents into four rows, in another combination
in every epoch. The loss and the gradient norm of each step are compared as relative differences. Steps after the first
also test the direction of the gradient.

    make parity                                                          # all, and docs/parity-packing.md
    python tests/parity/packed.py --plans tp,pp_1f1b --families llama    # a part
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.decoders import DECODERS
from helpers.metrics import training, worst_difference
from helpers.recipes import STDLIB, TINY
from helpers.several_runs import train_all, train_all_on_ranks
from helpers.zero import load_deepspeed
from parity.matrix import LAYOUTS, noise_of
from trireme.models.family import families

FAMILIES = [family for family in DECODERS if families()[family].packs is not False]
"""Decoders whose rows may hold several documents."""
PLANS = ("single", "ddp", "zero3", "fsdp_full_shard", "tp", "pp_1f1b", "3d")
STEPS, ROWS = 4, 4
TOLERANCE = 1e-6
LENGTHS = (280, 42, 105, 63, 217, 28, 154, 84, 182, 52, 126, 231)
"""Characters of the documents."""
DOCS = Path(__file__).parents[2] / "docs" / "parity-packing.md"
HEAD = f"""# Packed documents compared with single documents

These tables show that a packed document has the same losses and gradients as in a row of its own. Twelve documents in
four rows (`data.packing=bins`) are trained for {STEPS} steps of SGD in fp32 under each plan on gloo ranks, and
compared with one process that takes each document alone. A number is the largest relative difference of the loss and of
the norm of the gradient over all steps. All must stay under {TOLERANCE:.0e}. `make parity` makes these tables.
"""
NOISY = ("gpt_neox", "llama")
"""Decoders that are trained with noise."""
NOISE = """
## With noise

The same documents with NEFTune (alpha 5) and every dropout at 0.1, against one process: packed, or one to a row with
padding.
"""


def differences(plan: str, families: Sequence[str], folder: Path, *overrides: str, ranks: int = 0) -> dict[str, float]:
    """Largest relative difference of each family between packed documents under a plan and one document per row.

    Args:
        overrides: further options of the plan, which then has ``ranks`` ranks.
    """
    if plan.startswith("zero"):
        load_deepspeed()
    alone = [(TINY, folder / f"alone-{family}", _alone(folder, family)) for family in families]
    train_all([job for job in alone if not (job[1] / "metrics.jsonl").exists()])
    packed = [(TINY, folder / f"{plan}-{family}", [*_packed(folder, family, plan), *overrides]) for family in families]
    train_all_on_ranks(ranks or LAYOUTS[plan].ranks, packed, timeout=400)
    found = {}
    for family, (_, one, _), (_, other, _) in zip(families, alone, packed, strict=True):
        lines = training(one), training(other)
        counts = [[line["tokens"] for line in side] for side in lines]
        assert counts[0] == counts[1] and len(counts[0]) == STEPS, counts  # so every step is a pass over all documents
        found[family] = worst_difference(*lines)
    return found


def noisy_difference(plan: str, family: str, rows: str, folder: Path) -> float:
    """Largest relative difference of a run with NEFTune and dropout under a plan from that of one process.

    Args:
        rows: ``packed`` for several documents in a row, ``padded`` for one.
    """
    make = {"packed": _packed, "padded": _padded}[rows]
    more = [*noise_of(family), "optimizer.implementation=foreach"]
    runs = [
        (TINY, folder / f"noisy-{rows}-{name}-{family}", [*make(folder, family, name), *more])
        for name in ("single", plan)
    ]
    if not (runs[0][1] / "metrics.jsonl").exists():
        train_all(runs[:1])
    if plan.startswith("zero"):
        load_deepspeed()
    train_all_on_ranks(LAYOUTS[plan].ranks, runs[1:], timeout=400)
    one, other = (training(run_dir) for _, run_dir, _ in runs)
    assert [line["tokens"] for line in one] == [line["tokens"] for line in other]
    return worst_difference(one, other)


def _alone(folder: Path, family: str) -> list[str]:
    return [
        *_common(folder, family),
        "data.packing=false",
        "trainer.global_batch_size=12",
        "trainer.micro_batch_size=1",
    ]


def _packed(folder: Path, family: str, plan: str) -> list[str]:
    micro = ROWS // (LAYOUTS[plan].data * LAYOUTS[plan].least)
    batch = [f"trainer.global_batch_size={ROWS}", f"trainer.micro_batch_size={max(micro, 1)}"]
    return [*_common(folder, family), "data.packing=bins", f"plan={plan}", *batch]


def _padded(folder: Path, family: str, plan: str) -> list[str]:
    micro = len(LENGTHS) // (LAYOUTS[plan].data * LAYOUTS[plan].least)
    batch = [f"trainer.global_batch_size={len(LENGTHS)}", f"trainer.micro_batch_size={micro}"]
    return [*_common(folder, family), "data.packing=false", f"plan={plan}", *batch]


def _common(folder: Path, family: str) -> list[str]:
    return [
        f"model={family}_tiny",
        "data=files",
        f"data.source.paths=[{_documents(folder)}]",
        "data.held_out=0",
        "data.block_size=128",
        "optimizer=sgd",
        "optimizer.lr=0.1",
        f"trainer.max_steps={STEPS}",
        "trainer.eval_every=null",
        "trainer.eval_at_end=false",
        "checkpoint.at_end=false",
    ]


def _documents(folder: Path) -> Path:
    path, text = folder / "documents.jsonl", (STDLIB / "dataclasses.py").read_text()
    starts = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
    lines = [json.dumps({"text": text[at : at + length]}) for at, length in zip(starts, LENGTHS, strict=True)]
    path.write_text("\n".join(lines))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", default=",".join(PLANS), help="comma separated")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma separated")
    options = parser.parse_args(argv)
    plans, chosen = options.plans.split(","), options.families.split(",")
    logging.disable(logging.WARNING)
    plain: dict[str, dict[str, float]] = {}
    noisy: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        for plan in plans:
            with contextlib.redirect_stdout(io.StringIO()):
                plain[plan] = differences(plan, chosen, folder)
                noisy[plan] = {
                    f"{family}, {rows}": noisy_difference(plan, family, rows, folder)
                    for family in NOISY
                    for rows in ("packed", "padded")
                    if family in chosen and plan != "single"
                }
            found = plain[plan] | noisy[plan]
            print(plan, *(f"{family} {value:.1e}" for family, value in found.items()), flush=True)
    noisy.pop("single", None)
    worst = max(value for row in (*plain.values(), *noisy.values()) for value in row.values())
    if worst < TOLERANCE and (set(plans), set(chosen)) == (set(PLANS), set(FAMILIES)):
        DOCS.write_text(f"{HEAD}\n{_table(plain)}\n{NOISE}\n{_table(noisy)}\n")
    return int(not worst < TOLERANCE)


def _table(rows: dict[str, dict[str, float]]) -> str:
    titles = ["plan", "ranks", *next(iter(rows.values()))]
    lines = [
        [plan, str(LAYOUTS[plan].ranks), *(f"{value:.1e}" for value in row.values())] for plan, row in rows.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [titles, ["---"] * len(titles), *lines])


if __name__ == "__main__":
    sys.exit(main())
