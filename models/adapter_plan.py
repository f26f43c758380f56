"""``AdapterPlan``: which layers of a model have LoRA adapters, and each adapter's rank and scale."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class AdapterPlan:
    """The adapters of a model."""

    ranks: dict[str, int]
    """Path of a layer -> rank."""
    alphas: dict[str, float]
    """Path of a layer -> alpha."""
    saved: list[str] = field(default_factory=list)
    """Paths of the modules that are trained whole."""
    rslora: bool = False
    """Whether the product is scaled by alpha / sqrt(rank) instead of alpha / rank."""
    dora: bool = False
    """Whether the length of each row is trained too."""

    def scaling(self, path: str) -> float:
        """Factor of the product of the two matrices of a layer."""
        rank = self.ranks[path]
        return self.alphas[path] / (rank**0.5 if self.rslora else rank)


def pattern_key(patterns: Iterable[str], path: str) -> str | None:
    """The first of ``patterns`` that a path ends with, or matches as a regular expression, as peft looks them up."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", path)), None)
