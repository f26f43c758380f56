"""Convert other tools' switches for bf16 and fp16 into ``plan.precision``. If both are on, neither is converted."""

from __future__ import annotations

from typing import Any

from .recipe_draft import Draft
from .rule import Arguments, Rule

NAMES = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
"""Switch -> its precision."""


def precision(name: str) -> Rule:
    """Two switches for different precisions are both left, since the other tools refuse them."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        others = [other for other in NAMES if NAMES[other] != NAMES[name] and _on(given.get(other))]
        if _on(value) and others:
            draft.leave(name, value, f"{others[0]} is on too: a run has one precision, plan.precision=bf16 or fp16")
        elif _on(value):
            draft.set("plan.precision", NAMES[name])
        elif str(value).lower() not in ("false", "no", "off", "0"):
            draft.leave(name, value, "is neither true nor false")

    return rule


def _on(value: Any) -> bool:
    return str(value).lower() in ("auto", "full", "true", "yes", "on", "1")


PRECISION_RULES: dict[str, Rule] = {name: precision(name) for name in NAMES}
"""Switch -> its rule."""
