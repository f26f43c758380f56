"""Compare training under every parallelism plan with one process, print the results, and write ``docs/parity.md``.

    make parity
    python tests/parity/report.py --plans tp,pp_1f1b --families gpt2      # a part; docs/parity.md is not written
    python tests/parity/report.py --families seq2seq_lm,ctc               # models other than decoders
    python tests/parity/report.py --table                                 # only write the table of existing results

Results are written to ``docs/parity.json`` after each group of a plan's cases, so an interrupted command can continue.
``--fresh`` starts over. Within a table, every plan and family is measured under one setting (masks, accumulation)
before the next setting begins.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers.report import quietly
from parity.matrix import ADAPTED, ADAPTER_PLANS, FAMILIES, LAYOUTS, MASKS, SPREAD, STEPS, TOLERANCE, Case, differences
from parity.shapes import PLANS, SHAPES
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs" / "parity.md", ROOT / "docs" / "parity.json"
ACCUMULATION = (1, 4)
HEAD = f"""# Parity, measured

These tables show that a model trains the same under every plan as on one process. Three groups of models are trained
for {STEPS} steps in fp32 on real gloo ranks: decoders ({", ".join(FAMILIES)}) under every plan, models of other kinds
(such as encoders and encoder-decoders) under the plans without pipeline or tensor parallelism, and adapters on a frozen
base under plans of every kind. The one process takes each batch at once. A number is the largest relative difference of
the loss and of the norm of the global gradient over all steps, with gradient accumulation of
{" and ".join(map(str, ACCUMULATION))} (a pipeline takes its fewest micro-batches for 1), with full labels,
uneven labels, and noise (NEFTune and every dropout), on torch {torch.__version__}. All must stay under {TOLERANCE:.0e}.
An empty cell was not measured. `make parity` makes these tables.
"""
TITLES = {FAMILIES: "Decoders", tuple(SHAPES): "Other shapes", tuple(ADAPTED): "Adapters"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", default=",".join(LAYOUTS), help="comma separated")
    parser.add_argument(
        "--families", default=",".join((*FAMILIES, *SHAPES, *ADAPTED)), help="comma separated; shapes too"
    )
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--table", action="store_true", help="measure nothing; write docs/parity.md of what there is")
    options = parser.parse_args(argv)
    plans, kinds_wanted = options.plans.split(","), options.families.split(",")
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    cases = [case for case in _all() if case.plan in plans and case.family in kinds_wanted]
    results = json.loads(RESULTS.read_text()) if options.table else _run(cases)
    wanted = {case.name: results[case.name] for case in cases if case.name in results}
    failures = [f"{name}: {found:.1e}" for name, found in wanted.items() if not found < TOLERANCE]
    for kinds, title in TITLES.items():
        own = [one for one in kinds if one in kinds_wanted]
        _show(title, [plan for plan in _plans(kinds) if plan in plans], own, results)
    print(f"{len(wanted)} cases, {len(failures)} above {TOLERANCE:.0e}", *failures, sep="\n")
    if len(cases) == len(_all()) and not failures:
        DOCS.write_text(_markdown(results, len(wanted)))
    return 1 if failures else 0


def _plans(kinds: Sequence[str]) -> Sequence[str]:
    return {FAMILIES: SPREAD, tuple(ADAPTED): ADAPTER_PLANS}.get(tuple(kinds), PLANS)


def _all() -> list[Case]:
    return [case for kinds in TITLES for case in _cases(_plans(kinds), kinds)]


def _cases(plans: Sequence[str], families: Sequence[str]) -> Iterator[Case]:
    for accumulation, masks, plan, family in product(reversed(ACCUMULATION), reversed(MASKS), plans, families):
        yield Case(plan, family, accumulation, masks)


def _run(cases: list[Case]) -> dict[str, float]:
    """Differences by name of the case; NaN where a run failed."""
    results: dict[str, float] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        bar = progress.add_task("parity", total=len(cases))
        for plan, group in groupby(cases, lambda case: case.plan):
            group = list(group)
            left = [case for case in group if case.name not in results]
            progress.update(bar, description=f"{plan}: {', '.join(case.family for case in left)}")
            if left:
                results.update(_quietly(left, Path(folder)))
                RESULTS.write_text(json.dumps(results, indent=0))
            progress.advance(bar, len(group))
    return results


def _quietly(cases: list[Case], folder: Path) -> dict[str, float]:
    """``differences`` without the runs' own log lines. If one case fails, its group ends, and each is tried alone."""
    try:
        with quietly():
            return differences(cases, folder)
    except AssertionError as error:
        if len(cases) > 1:
            return {name: found for case in cases for name, found in _quietly([case], folder).items()}
        print(f"{cases[0].name}: {error}", file=sys.stderr)
        return {cases[0].name: math.nan}


def _worst(plans: Sequence[str], families: Sequence[str], results: dict[str, float]) -> dict[tuple[str, str], float]:
    found = {}
    for plan, family in product(plans, families):
        values = [results[case.name] for case in _cases([plan], [family]) if case.name in results]
        found[plan, family] = math.nan if not values or any(map(math.isnan, values)) else max(values)
    return found


def _rows(plans: Sequence[str], families: Sequence[str], results: dict[str, float]) -> list[list[str]]:
    worst, rows = _worst(plans, families, results), []
    for plan in plans:
        values = [worst[plan, family] for family in families]
        most = max((value for value in values if not math.isnan(value)), default=math.nan)
        rows.append([plan, str(LAYOUTS[plan].ranks), *map(_cell, [*values, most])])
    return rows


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1e}"


def _show(title: str, plans: Sequence[str], families: Sequence[str], results: dict[str, float]) -> None:
    if not plans or not families:
        return
    table = Table("plan", "ranks", *families, "maximum", title=f"{title}: largest relative difference from one process")
    for row in _rows(plans, families, results):
        table.add_row(*row)
    Console().print(table)


def _markdown(results: dict[str, float], measured: int) -> str:
    cases = len(_all())
    extent = f"All {cases} cases were" if measured == cases else f"So far {measured} of {cases} cases were"
    parts = [f"{HEAD}\n{extent} measured ([parity.json](parity.json)).\n"]
    for kinds, title in TITLES.items():
        titles = ["plan", "ranks", *kinds, "maximum"]
        lines = [titles, ["---"] * len(titles), *_rows(_plans(kinds), kinds, results)]
        parts.append(f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
