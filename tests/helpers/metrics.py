"""Read the metrics that a run wrote, and compare the metrics of two runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def lines(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without values that depend on the clock."""
    read = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in read]


def training(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_dir) if "loss" in line]


def worst_difference(
    one: list[dict[str, Any]], other: list[dict[str, Any]], keys: Sequence[str] = ("loss", "grad_norm")
) -> float:
    """Largest relative difference of ``keys`` over the steps of two runs."""
    assert len(one) == len(other) > 0
    return max(abs(a[key] - b[key]) / abs(a[key]) for a, b in zip(one, other, strict=True) for key in keys)
