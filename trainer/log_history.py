"""The lines that a run has logged so far, equal on all ranks, for callbacks that look back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Trainer

METRICS = "metrics.jsonl"


class LogHistory:
    """Training and evaluation lines in their order, those before a resume included."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def begin(self, trainer: Trainer) -> None:
        """Take the lines up to the step from which the run goes on; a collective call."""
        self.lines = []
        if trainer.state.step:
            file = trainer.run_dir / METRICS
            found: Any = lines_until(file, trainer.state.step) if trainer.mesh.is_main else None
            self.lines = list(trainer.mesh.broadcast_object(found))  # type: ignore[arg-type]


def lines_until(file: Path, step: int) -> list[dict[str, Any]]:
    """Lines of a metrics file up to a step; none if there is no file."""
    found = []
    try:
        texts = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:  # cut by a kill
            continue
        if isinstance(line, dict) and line.get("step", step + 1) <= step:
            found.append(line)
    return found
