"""Run the whole parity matrix, print it as a table, and write ``docs/parity.md``.

    make parity
    python tests/parity/report.py --plans tp,pp_1f1b --families gpt2      # a part; docs/parity.md is left alone
    python tests/parity/report.py --table                                 # only write down what has been measured

Results are kept in ``docs/parity.json`` as they come, so that an interrupted matrix goes on (``--fresh`` starts
it over). The order covers every plan and family early.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
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

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs" / "parity.md", ROOT / "docs" / "parity.json"
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
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--table", action="store_true", help="measure nothing; write docs/parity.md of what there is")
    options = parser.parse_args(argv)
    plans, families = options.plans.split(","), options.families.split(",")
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    results = json.loads(RESULTS.read_text()) if options.table else _run(list(_cases(plans, families)))
    wanted = {case.name: results[case.name] for case in _cases(plans, families) if case.name in results}
    failures = [f"{name}: {found:.1e}" for name, found in wanted.items() if not found < TOLERANCE]
    worst = _worst(plans, families, results)
    _show(plans, families, worst)
    print(f"{len(wanted)} cases, {len(failures)} above {TOLERANCE:.0e}", *failures, sep="\n")
    if set(plans) == set(LAYOUTS) and set(families) == set(FAMILIES) and not failures:
        DOCS.write_text(_markdown(plans, families, worst, len(wanted)))
    return 1 if failures else 0


def _cases(plans: Sequence[str], families: Sequence[str]) -> Iterator[Case]:
    for accumulation, masks, plan, family in product(reversed(ACCUMULATION), reversed(MASKS), plans, families):
        yield Case(plan, family, accumulation, masks)


def _run(cases: list[Case]) -> dict[str, float]:
    """Differences by name of the case; NaN where a run failed."""
    results: dict[str, float] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        bar = progress.add_task("parity", total=len(cases))
        for case in cases:
            progress.update(bar, description=case.name)
            if case.name not in results:
                results[case.name] = _quietly(case, Path(folder))
                RESULTS.write_text(json.dumps(results, indent=0))
            progress.advance(bar)
    return results


def _quietly(case: Case, folder: Path) -> float:
    """Without the runs' own log lines."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return difference(case, folder)
    except AssertionError as error:
        print(f"{case.name}: {error}", file=sys.stderr)
        return math.nan


def _worst(plans: Sequence[str], families: Sequence[str], results: dict[str, float]) -> dict[tuple[str, str], float]:
    found = {}
    for plan, family in product(plans, families):
        values = [results[case.name] for case in _cases([plan], [family]) if case.name in results]
        found[plan, family] = math.nan if not values or any(map(math.isnan, values)) else max(values)
    return found


def _rows(plans: Sequence[str], families: Sequence[str], worst: dict[tuple[str, str], float]) -> list[list[str]]:
    rows = []
    for plan in plans:
        values = [worst[plan, family] for family in families]
        rows.append([plan, str(LAYOUTS[plan].ranks), *(f"{value:.1e}" for value in values), f"{max(values):.1e}"])
    return rows


def _show(plans: Sequence[str], families: Sequence[str], worst: dict[tuple[str, str], float]) -> None:
    table = Table("plan", "ranks", *families, "maximum", title="largest relative difference from one process")
    for row in _rows(plans, families, worst):
        table.add_row(*row)
    Console().print(table)


def _markdown(plans: Sequence[str], families: Sequence[str], worst: dict[tuple[str, str], float], measured: int) -> str:
    titles = ["plan", "ranks", *families, "maximum"]
    lines = [titles, ["---"] * len(titles), *_rows(plans, families, worst)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    cases = sum(1 for _ in _cases(plans, families))
    extent = f"All {cases} cases were" if measured == cases else f"So far {measured} of {cases} cases were"
    return f"{HEAD.format(families=', '.join(families))}\n{extent} measured ([parity.json](parity.json)).\n\n{table}\n"


if __name__ == "__main__":
    sys.exit(main())
