"""``AdapterPlan``: which layers of a model have LoRA adapters, and each adapter's rank and scale.

Checkpoints contain the plan as a file. A resumed run therefore does not read the folder that the adapter was loaded
from, which may have changed since or be gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .json_file import read_json

ADAPTER = "adapter.json"
"""File of a checkpoint's folder ``model`` that holds the plan."""


@dataclass(frozen=True)
class AdapterPlan:
    """The adapters of a model."""

    ranks: dict[str, int]
    """Path of a layer -> rank."""
    alphas: dict[str, float]
    """Path of a layer -> alpha."""
    saved: list[str] = field(default_factory=list)
    """Paths of the modules whose weights are all trained."""
    rslora: bool = False
    """Whether the product is scaled by alpha / sqrt(rank) instead of alpha / rank."""
    dora: bool = False
    """Whether the length of each row is trained too."""

    def scaling(self, path: str) -> float:
        """Factor of the product of the two matrices of a layer."""
        rank = self.ranks[path]
        return self.alphas[path] / (rank**0.5 if self.rslora else rank)

    def as_text(self) -> str:
        """The plan as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def write_plan(plan: AdapterPlan, folder: Path) -> None:
    """Write the plan into a checkpoint's folder ``model``."""
    (folder / ADAPTER).write_text(plan.as_text())


def read_plan(folder: Path | None) -> AdapterPlan | None:
    """The plan in a checkpoint's folder ``model``; None if there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if folder is None or not (folder / ADAPTER).is_file():
        return None
    try:
        values = read_json(folder / ADAPTER)
        alphas = {path: float(alpha) for path, alpha in values["alphas"].items()}
        return AdapterPlan(dict(values["ranks"]), alphas, list(values["saved"]), values["rslora"], values["dora"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its {ADAPTER} cannot be read ({error})") from None


def pattern_key(patterns: Iterable[str], path: str) -> str | None:
    """The first of ``patterns`` that a path ends with, or matches as a regular expression, as peft looks them up."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)
