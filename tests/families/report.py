"""Try architectures of transformers by ``model.family=auto``, print them as a table, and write ``docs/families.md``.

    make families
    python tests/families/report.py --types qwen3,mistral      # a part; docs/families.md is left alone

Results are kept in ``build/families.json`` as they come, so that an interrupted run goes on (``--fresh`` starts over).
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
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import transformers
from families.matrix import PLANS, STEPS, TOLERANCE, TYPES, Found, look
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

ROOT = Path(__file__).parents[2]
DOCS, RESULTS = ROOT / "docs" / "families.md", ROOT / "build" / "families.json"
HEAD = f"""# Architectures without a file of their own, measured

`model.family=auto` trains any architecture of transformers: `model.config.model_type` names it, or the config.json of
`model.weights` does. `make families` makes this table: a tiny configuration of each architecture is trained for {STEPS}
steps in fp32 under {", ".join(PLANS)} on real gloo ranks and compared with one process (transformers
{transformers.__version__}, torch {torch.__version__}). A number is the largest relative difference of losses and norms
of the global gradient; it must stay under {TOLERANCE:.0e}. *resumes*: a run that was stopped and resumed goes on bit
for bit. *exports*: plain transformers loads the exported folder, and every tensor is the trained one.

Pipelines need a file in `models/families`, and so does tensor parallelism.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--types", default=",".join(TYPES), help="architectures, comma separated")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    options = parser.parse_args(argv)
    types = options.types.split(",")
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)
    results = _run(types)
    failed = [name for name in types if not _good(results[name])]
    _show(types, results)
    if types == list(TYPES) and not failed:
        DOCS.write_text(HEAD + "\n" + "\n".join(_lines(types, results)) + "\n")
    for name in failed:
        print(f"{name}: {results[name].get('failure', 'differs')}")
    return 1 if failed else 0


def _run(types: list[str]) -> dict[str, dict]:
    RESULTS.parent.mkdir(exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    logging.disable(logging.WARNING)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bar,
    ):
        for name in bar.track(types):
            if name in results and "failure" not in results[name]:
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    results[name] = asdict(look(name, Path(folder)))
            except Exception as error:  # of whatever kind: the table says which
                results[name] = {"failure": " ".join(f"{type(error).__name__}: {error}".split())[-600:]}
            RESULTS.write_text(json.dumps(results, indent=1))
    return results


def _good(found: dict) -> bool:
    if "failure" in found:
        return False
    seen = Found(**found)
    return seen.resumed and seen.exported and max(seen.differences.values()) < TOLERANCE


def _lines(types: list[str], results: dict[str, dict]) -> list[str]:
    yes = {True: "yes", False: "no"}
    lines = ["| architecture | task | parameters | " + " | ".join(PLANS) + " | resumes | exports |"]
    lines.append("| --- " * (5 + len(PLANS)) + "|")
    for name in types:
        if "failure" in results[name]:
            lines.append(f"| {name} | {TYPES[name]} | fails |")
            continue
        seen = Found(**results[name])
        numbers = " | ".join(f"{seen.differences[plan]:.1e}" for plan in PLANS)
        lines.append(
            f"| {name} | {TYPES[name]} | {seen.parameters / 1e3:.0f} k | {numbers} | {yes[seen.resumed]} | "
            f"{yes[seen.exported]} |"
        )
    return lines


def _show(types: list[str], results: dict[str, dict]) -> None:
    head, _, *rows = _lines(types, results)
    table = Table(*[cell.strip() for cell in head.strip("|").split("|")])
    for row in rows:
        table.add_row(*[cell.strip() for cell in row.strip("|").split("|")])
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
