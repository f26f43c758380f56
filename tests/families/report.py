"""Test many architectures of transformers with ``model.family=auto``, and write the results to ``docs/families.md``.

    make families
    python tests/families/report.py phi3 beit hubert      # any architectures by name; docs/families.md is not written

Each result is written to ``build/families.json`` at once, so an interrupted command can continue. ``--fresh`` starts
over. Architectures that failed are tested again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("PYTHONWARNINGS", "ignore")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from families.matrix import PLANS, STEPS, TOLERANCE, TYPES, Found, try_architecture
from helpers.report import keep, kept, markdown, progress_bar, quietly, show
from trireme.models.family import families
from trireme.models.other_families import WRONG

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs" / "families.md", ROOT / "build" / "families.json"
INSIDE = {kind: " as a part of another model" for kind in families()}
"""Architectures with a family file, which are refused only as a part of another model -> the words that say so."""
REFUSED = "; ".join(f"`{kind}`{INSIDE.get(kind, '')}, because {reason}" for kind, reason in WRONG.items())
HEAD = f"""# Architectures of transformers, tested under several plans

This table shows how closely training under several plans agrees with one process, for each architecture of transformers
that was tested with `model.family=auto`. (`model.config.model_type`, or the config.json of `model.weights`, names the
architecture.) `make families` makes the table: a tiny configuration of each architecture is trained for {STEPS}
steps in fp32 on small real data, with the task that its heads allow and its own kind of processor, under
{", ".join(PLANS)} on two real gloo ranks each, and compared with one process (transformers {transformers.__version__},
torch {torch.__version__}). `python tests/families/report.py NAME ...` tries others.

A number is the largest relative difference of losses and norms of the global gradient; it must stay under
{TOLERANCE:.0e}. *resumes*: a run that was stopped and resumed goes on bit for bit, and ends with the same weights.
*exports*: plain transformers loads the exported folder with its processors, every tensor is the trained one, and the
outputs are the same to 1e-6. An empty cell under tp means that transformers has no tensor plan for the architecture,
or one with a style that trireme does not have; `trireme check` says which. Architectures with BatchNorm are trained
with its statistics fixed (`model.frozen_batchnorm=true`).

Refused by name: {REFUSED}. Pipelines need a file in `models/families`.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("types", nargs="*", metavar="NAME", help="architectures; without any, those of the table")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args(argv)
    types = options.types or list(TYPES)
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    results = _run(types)
    show(*_table(types, results))
    wrong = [name for name in types if not results[name].sound]
    print(f"{len(types)} architectures, {len(wrong)} wrong")
    for name in wrong:
        print(f"{name}: {results[name].failure or 'differs'}")
    if not options.types and not wrong:
        DOCS.write_text(f"{HEAD}\n{markdown(*_table(types, results))}\n")
    return 1 if wrong else 0


def _run(types: list[str]) -> dict[str, Found]:
    results = {name: found for name, found in kept(RESULTS, Found).items() if found.sound}
    with tempfile.TemporaryDirectory() as folder, progress_bar(len(types)) as bar:
        os.environ.setdefault("TRIREME_CACHE", f"{folder}/cache")
        for number, name in enumerate(types):
            bar(name, number)
            if name in results:
                continue
            start = time.monotonic()
            with quietly():
                results[name] = _tried(name, Path(folder) / "runs")
            results[name].seconds = round(time.monotonic() - start, 1)
            keep(RESULTS, results)
        bar("", len(types))
    return results


def _tried(name: str, folder: Path) -> Found:
    folder.mkdir()
    try:
        return try_architecture(name, folder)
    except Exception as error:  # any failure: the table names it
        words = f"{type(error).__name__}: {error}".split()
        return Found("", "", failure=" ".join(words)[-1500:])
    finally:
        shutil.rmtree(folder)


def _table(types: list[str], results: dict[str, Found]) -> tuple[list[str], list[list[str]]]:
    titles = ["architecture", "shape", "head", "parameters", *PLANS, "worst", "resumes", "exports"]
    return titles, [_row(name, results[name]) for name in types]


def _row(name: str, found: Found) -> list[str]:
    if found.failure:
        return [name, "fails"]
    numbers = [f"{found.differences[plan]:.1e}" if plan in found.differences else "" for plan in PLANS]
    yes = ["yes" if good else "no" for good in (found.resumed, found.exported)]
    worst = f"{max(found.differences.values(), default=0.0):.1e}"
    return [name, found.shape, found.head, f"{found.parameters / 1e3:.0f} k", *numbers, worst, *yes]


if __name__ == "__main__":
    sys.exit(main())
