"""Resume runs under other parallelism plans than they were saved under, print results, and write ``docs/resume.md``.

    make resume-matrix
    python tests/resume/report.py --after tp,3d      # a part; docs/resume.md is not written

Each result is written to ``build/resume.json`` at once, and runs to ``build/resume``, so an interrupted command can
continue. ``--fresh`` starts over. Pairs that failed are tested again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from helpers.report import keep, kept, markdown, progress_bar, quietly, show
from resume.matrix import (
    ADAPTED,
    BATCHES,
    GLOBAL_BATCH,
    LAYOUTS,
    PLANS,
    SAVED,
    STEPS,
    TOLERANCE,
    Case,
    Found,
    adapted,
    full,
    resumed,
    uninterrupted,
)

ROOT = Path(__file__).parents[2]
DOCS, RESULTS, RUNS = ROOT / "docs" / "resume.md", ROOT / "build" / "resume.json", ROOT / "build" / "resume"
HEAD = f"""# Resuming under another plan, measured

The table below shows that a run saved under any of ten plans resumes under any other, with the same samples and with
losses that differ only by rounding. The text behind it shows the same for another global batch size, and for runs that
train adapters. `make resume-matrix` tests all ordered pairs of plans and writes this page.

A tiny GPT-2 (tied head, fused projections; fp32, AdamW, cosine schedule) is trained under one plan, in CPU processes
that communicate through gloo. It is saved after step {SAVED} of {STEPS} at a global batch of {GLOBAL_BATCH}, and
resumed under another plan, with torch {torch.__version__}. In every cell of the table:

- every tensor (weights, both moments of AdamW, step counters, and averaged weights where both plans keep them), saved
  again under the new plan right after the load, equals the checkpoint's bit for bit; so do progress, callbacks and loss
  scale;
- the samples of all data ranks in steps {SAVED + 1} to {STEPS} are those of an uninterrupted run on one
  process, in its order;
- the number is the largest relative difference of losses and norms of the global gradient in these steps from that
  uninterrupted run; it must stay under {TOLERANCE:.0e};
- on the diagonal, lines and final tensors also equal, bit for bit, those of the uninterrupted run under the same plan.

8.1e-08 is one unit in the last place of a gradient norm in fp32. For comparison: a resume on one process that drops
AdamW's first moments differs by 2.5e-02, one that skips a batch by 8.1e-02.
"""
BESIDE = f"""
Runs that train adapters resume in the same way. Their checkpoints hold the adapters, the fully trained modules, both
moments of AdamW for these, and a digest of the base. Tested are LoRA on Llama, and DoRA on GPT-2 with its tied
embedding fully trained; every pair of {", ".join(ADAPTED)}: all """
VARIANTS = ("lora", "dora")
OTHER = """
With another global batch size after the resume, a run continues with the right sample. Each plan in this list resumes
a run that was saved under the plan before it: """


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--after", default=",".join(PLANS), help="plans to resume under, comma separated")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args(argv)
    after = options.after.split(",")
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
        shutil.rmtree(RUNS, ignore_errors=True)
    cases = {plan: full()[plan] for plan in after}
    beside = ADAPTED if set(after) == set(PLANS) else [plan for plan in after if plan in ADAPTED]
    for variant in VARIANTS:
        cases |= {f"{plan}-{variant}": adapted(variant)[plan] for plan in beside}
    results = _run(cases)
    wanted = [case for group in cases.values() for case in group]
    failures = [case for case in wanted if not results[case.name].sound]
    title = "largest relative difference from an uninterrupted run"
    show(["saved under", *map(_title, after)], _rows(after, results), title)
    print(
        f"{len(wanted)} resumes, {len(failures)} wrong",
        *(_wrong(case, results[case.name]) for case in failures),
        sep="\n",
    )
    if set(after) == set(PLANS) and not failures:
        DOCS.write_text(_markdown(results))
    return 1 if failures else 0


def _run(cases: dict[str, list[Case]]) -> dict[str, Found]:
    """Results by case name; after a case that fails, a new group of ranks runs the cases behind it."""
    earlier = kept(RESULTS, Found)
    results = {name: found for name, found in earlier.items() if found.sound}
    for name in earlier.keys() - results.keys():
        shutil.rmtree(RUNS / name, ignore_errors=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TRIREME_CACHE", str(RUNS / "cache"))
    with progress_bar(sum(map(len, cases.values()))) as bar:
        for after, group in cases.items():
            while left := [case for case in group if case.name not in results]:
                bar(after, len(results))
                results |= _resumed(left[0].after, left)
                keep(RESULTS, results)
        bar("resume", len(results))
    return results


def _resumed(after: str, cases: list[Case]) -> dict[str, Found]:
    with quietly():
        for plan in {"single", *(case.before for case in cases)}:
            uninterrupted(RUNS, plan, cases[0].variant)
        return resumed(RUNS, after, cases)


def _wrong(case: Case, found: Found) -> str:
    if found.error:
        return f"{case.name}: {found.error}"
    what = [f"{len(found.differing)} tensors differ, such as {found.differing[:2]}"] if found.differing else []
    what += ["state differs"] if not found.state else []
    what += ["other samples"] if not found.samples else []
    what += ["not bit-exact"] if found.exact is False else []
    what += [f"difference {found.difference:.1e}"] if not found.difference < TOLERANCE else []
    return f"{case.name}: {', '.join(what)}"


def _cell(case: Case, found: Found) -> str:
    if not found.sound:
        return "wrong"
    return f"{found.difference:.1e}" + (", bit-exact" if found.exact else "")


def _rows(after: Sequence[str], results: dict[str, Found]) -> list[list[str]]:
    rows = []
    for before in PLANS:
        cells = [_cell(case, results[case.name]) for case in (Case(before, plan) for plan in after)]
        rows.append([_title(before), *cells])
    worst = [max(results[Case(before, plan).name].difference for before in PLANS) for plan in after]
    return [*rows, ["maximum", *(f"{value:.1e}" for value in worst)]]


def _title(plan: str) -> str:
    return f"{plan} x{LAYOUTS[plan].ranks}" if plan in LAYOUTS else plan


def _markdown(results: dict[str, Found]) -> str:
    titles = ["saved under / resumed under", *map(_title, PLANS)]
    table = markdown(titles, _rows(PLANS, results))
    others = [case for group in full().values() for case in group if case.batch != GLOBAL_BATCH]
    right = [f"{case.after} at {case.batch}" for case in others if results[case.name].sound]
    batches = " and ".join(map(str, BATCHES))
    assert len(right) == len(others)
    beside = [results[case.name] for kind in VARIANTS for group in adapted(kind).values() for case in group]
    worst = max(found.difference for found in beside)
    more = f"{BESIDE}{len(beside)}, with a difference of at most {worst:.1e}.\n"
    batch = f"{OTHER}{', '.join(PLANS)}, at {batches} instead of {GLOBAL_BATCH}: all {len(right)}.\n"
    return f"{HEAD}\n{table}\n{batch}{more}"


if __name__ == "__main__":
    sys.exit(main())
