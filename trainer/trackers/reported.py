"""Record in ``trackers.json`` in the run folder what a tracker has reported: the tracker's run id and the last step.

A resume continues the run with this id. A run that was killed resumes from its last checkpoint and repeats some steps
with the same results; their metrics are not reported again. Metrics that the killed process had not reported yet are
taken from ``metrics.jsonl``. So a tracker shows the metrics of each step once.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from .line import kind_of

FILE = "trackers.json"
_lock = threading.Lock()
"""Held while the file is changed, since each tracker writes in a thread of its own."""


class Reported:
    """The notes on one tracker of a run."""

    def __init__(self, run_dir: Path, key: str) -> None:
        self._file, self._key = run_dir / FILE, key
        noted = _read(self._file).get(key, {})
        self._id: str | None = noted.get("id")
        self._step: int = noted.get("step", 0) if self._id else 0
        self._kinds: list[str] = noted.get("kinds", []) if self._id else []

    @property
    def id(self) -> str | None:
        """Id of the run in the tracker; None before it has begun there."""
        return self._id

    @id.setter
    def id(self, value: str) -> None:
        if value != self._id:  # another run: nothing of it is reported yet
            self._id, self._step, self._kinds = value, 0, []
        self.save()

    def has(self, step: int, metrics: dict[str, Any]) -> bool:
        """Whether this line was reported before."""
        return step < self._step or (step == self._step and kind_of(metrics) in self._kinds)

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        """Note a line as reported; ``save`` writes the note."""
        if step != self._step:
            self._step, self._kinds = step, []
        self._kinds = [*self._kinds, kind_of(metrics)]

    def go_back(self, step: int) -> None:
        """Forget lines of steps after ``step``, which are reported again."""
        if step < self._step:
            self._step, self._kinds = step, ["train", "eval"]

    def save(self) -> None:
        """Write the notes into the run folder.

        Raises:
            OSError: the folder cannot be written.
        """
        with _lock:
            noted = {**_read(self._file), self._key: {"id": self._id, "step": self._step, "kinds": self._kinds}}
            partial = self._file.with_name(f".{FILE}.partial")
            partial.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, self._file)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
