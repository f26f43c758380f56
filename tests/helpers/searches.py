"""Prepare and run hyperparameter searches over the tiny recipe, and read their tables of trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.recipes import FEW_FILES, TINY
from trireme.launch.search.check_search import prepare
from trireme.launch.search.prepared import Prepared
from trireme.launch.search.start_search import run
from trireme.launch.search.study_store import StudyStore
from trireme.launch.search.trial_starter import TrialStarter

ROOTS = "data.source.roots=[" + ",".join(FEW_FILES) + "]"
RATES = "search.space={optimizer.lr:{low:1e-5,high:1e-1,log:true}}"
MIXED = RATES[:-1] + ",optimizer:[adamw,sgd],trainer.max_grad_norm:{low:0.5,high:1.5,step:0.5}}"
"""Ranges, a group, and a range with steps."""
FEW_STEPS = ("trainer.max_steps=4", "trainer.eval_every=1", "trainer.eval_samples=8", "checkpoint.every=1")


def prepared(folder: Path, *overrides: str, nproc: int | None = None, **options: Any) -> Prepared:
    engine = [] if any(text.startswith("search=") for text in overrides) else ["search=optuna"]
    given = [ROOTS, *engine, f"run.dir={folder}", *FEW_STEPS, *overrides]
    return prepare(str(TINY), given, (), nproc, **options)


def searched(
    starter: TrialStarter, folder: Path, *overrides: str, nproc: int | None = None, **options: Any
) -> StudyStore:
    """Run a search to its end in this process; its trials run in others."""
    return run(prepared(folder, *overrides, nproc=nproc, **options), starter=starter)


def search_arguments(folder: Path, *overrides: str) -> list[str]:
    """Arguments of ``trireme`` for a search over the tiny recipe."""
    return ["search", str(TINY), ROOTS, "search=optuna", f"run.dir={folder}", *FEW_STEPS, *overrides]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a study's table of trials."""
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def sample() -> dict[str, Any]:
    """A recipe with which the fork server of trials warms up."""
    return {"recipe": str(TINY), "overrides": [ROOTS], "recipe_dirs": [], "nproc": 1}
