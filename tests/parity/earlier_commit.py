"""Train under parallelism plans with this code and with an earlier commit, and compare the results bit by bit.

    python tests/parity/earlier_commit.py COMMIT                                # every plan and decoder
    python tests/parity/earlier_commit.py COMMIT --plans ddp,tp --families gpt2
    python tests/parity/earlier_commit.py COMMIT --now plan.deepspeed.reduce_bucket_size=4096

This proves that changes since the commit have not changed training. The losses and gradient norms of every step are
compared, both under the plan and in a single process. Both versions run on this machine, because the last bits of
results differ between processors: their instruction sets decide which kernels run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).parents[2]
SETTINGS = ((4, "uneven"), (1, "full"), (4, "full"), (1, "uneven"))
"""Gradient accumulation and label masks; each pair of plan and family is trained with one of these settings."""
Cell = tuple[str, str, int, str, list[str]]
"""One training run: plan, family, accumulation, labels, and overrides."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--plans", help="comma separated; all plans of the matrix if left out")
    parser.add_argument("--families", default="persimmon,gpt_neox,llama,gpt2", help="comma separated")
    parser.add_argument(
        "--now",
        action="append",
        default=[],
        metavar="OVERRIDE",
        help="an override for this code, where a default has changed; plan.deepspeed.* is for ZeRO's plans only",
    )
    options = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "tests"))
    from parity.matrix import LAYOUTS

    plans = options.plans.split(",") if options.plans else [plan for plan in LAYOUTS if plan != "single"]
    families = options.families.split(",")
    cells = [
        (plan, family, *SETTINGS[(row + column) % len(SETTINGS)], [])
        for (row, plan), (column, family) in product(enumerate(plans), enumerate(families))
    ]
    with tempfile.TemporaryDirectory() as folder:
        earlier, worktree = Path(folder) / "earlier" / "trireme", ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*worktree, "add", "--quiet", "--detach", str(earlier), options.commit], check=True)
        try:
            before = _trained(earlier, Path(folder), cells)
        finally:
            subprocess.run([*worktree, "remove", "--force", str(earlier)], check=True)
        now = _trained(ROOT, Path(folder), [_overridden(cell, options.now) for cell in cells])
    names = ["-".join(map(str, cell[:4])) for cell in cells]
    changed = [name for name, one, other in zip(names, before, now, strict=True) if one != other]
    print(f"{len(cells)} cells, {len(changed)} differ from {options.commit}", *changed, sep="\n")
    return 1 if changed else 0


def _overridden(cell: Cell, overrides: list[str]) -> Cell:
    zero = cell[0].startswith("zero")
    return *cell[:4], [each for each in overrides if zero or not each.startswith("plan.deepspeed.")]


def _trained(root: Path, folder: Path, cells: list[Cell]) -> list[Any]:
    """Losses and gradient norms of all cells, trained by the code in ``root``, whose folder is called trireme."""
    out = Path(tempfile.mkdtemp(dir=folder))
    (out / "cells.json").write_text(json.dumps(cells))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root.parent), str(root / "tests")))}
    subprocess.run([sys.executable, __file__, "--train-cells", str(out)], env=environment, check=True)
    return json.loads((out / "found.json").read_text())


def _train_cells(out: Path) -> None:
    """Train the cells that ``_trained`` has written. This runs with this code and with older code, so it uses only
    functions that ``parity.matrix`` has always had."""
    import torch
    from helpers.metrics import training
    from parity.matrix import STEPS, Case, difference, reference

    torch.set_num_threads(1)
    found = []
    for plan, family, accumulation, labels, overrides in json.loads((out / "cells.json").read_text()):
        case = Case(plan, family, accumulation, labels, tuple(overrides))
        print(f"{case.name}: {difference(case, out):.1e} from one process", flush=True)
        folders = reference(out, family, labels), out / f"{case.name}-{STEPS}"
        found.append([[(line["loss"], line["grad_norm"]) for line in training(folder)] for folder in folders])
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train-cells"]:
        _train_cells(Path(sys.argv[2]))
    else:
        sys.exit(main())
