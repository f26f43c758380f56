"""Run the whole parity matrix, print it as a table, and write ``docs/parity.md``.

make parity
python tests/parity/report.py --plans tp,pp_1f1b --families gpt2      # a part; nothing is written
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from parity.matrix import FAMILIES, LAYOUTS, MASKS, STEPS, TOLERANCE, Case, difference
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

DOCS = Path(__file__).parents[2] / "docs" / "parity.md"
ACCUMULATION = (1, 4)
HEAD = f"""# Parity, measured

Every plan trains {{families}} for {STEPS} steps in fp32 on real gloo ranks, and is compared with one process:
the loss and the norm of the global gradient of every step. A number is the largest relative difference of both over all
steps, over accumulation {" and ".join(map(str, ACCUMULATION))} (the fewest micro-batches that a pipeline runs count
as 1), over full labels and uneven masks, on torch {torch.__version__}. All must stay under {TOLERANCE:.0e}.
`make parity` makes this table.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", default=",".join(LAYOUTS), help="comma separated")
    parser.add_argument("--families", default=",".join(FAMILIES), help="comma separated")
    options = parser.parse_args(argv)
    plans, families = options.plans.split(","), options.families.split(",")
    torch.set_num_threads(1)
    started, failures, worst = time.time(), [], {}
    cases = [Case(*parts) for parts in product(plans, families, ACCUMULATION, MASKS)]
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        bar = progress.add_task("parity", total=len(cases))
        for case in cases:
            progress.update(bar, description=case.name)
            try:
                found = _quietly(case, Path(folder))
            except AssertionError as error:
                failures.append(f"{case.name}: {error}")
                found = float("nan")
            if not found < TOLERANCE:
                failures.append(f"{case.name}: {found:.1e}")
            key = (case.plan, case.family)
            worst[key] = found if found != found else max(worst.get(key, 0.0), found)
            progress.advance(bar)
    _show(plans, families, worst)
    print(f"{len(cases)} cases, {len(failures)} failures, {(time.time() - started) / 60:.0f} minutes")
    print("\n".join(failures))
    if set(plans) == set(LAYOUTS) and set(families) == set(FAMILIES) and not failures:
        DOCS.write_text(_markdown(plans, families, worst))
    return 1 if failures else 0


def _quietly(case: Case, folder: Path) -> float:
    """Without the runs' own log lines."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        return difference(case, folder)


def _rows(plans: Sequence[str], families: Sequence[str], worst: dict) -> list[list[str]]:
    rows = []
    for plan in plans:
        values = [worst[plan, family] for family in families]
        rows.append([plan, str(LAYOUTS[plan].ranks), *(f"{value:.1e}" for value in values), f"{max(values):.1e}"])
    return rows


def _show(plans: Sequence[str], families: Sequence[str], worst: dict) -> None:
    table = Table("plan", "ranks", *families, "maximum", title="largest relative difference from one process")
    for row in _rows(plans, families, worst):
        table.add_row(*row)
    Console().print(table)


def _markdown(plans: Sequence[str], families: Sequence[str], worst: dict) -> str:
    titles = ["plan", "ranks", *families, "maximum"]
    lines = [titles, ["---"] * len(titles), *_rows(plans, families, worst)]
    return (
        HEAD.format(families=", ".join(families)) + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
