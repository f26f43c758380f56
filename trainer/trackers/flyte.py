"""Tracker for Flyte: show the run's recipe, metrics and images in a Flyte deck, and keep checkpoints for task retries.

It works inside a task (``@task(enable_deck=True)`` around ``trireme.train``); Flyte shows the deck of a task when the
task has ended. A retried task finds the newest checkpoint in ``current_context().checkpoint``.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker

MOST_LINES = 2000
"""Most lines in the deck; of more, the last ones are shown."""


@dataclass(eq=False)
class Flyte(Tracker):
    """Reports to the task's deck."""

    TITLE: ClassVar = "Flyte"
    LIBRARY: ClassVar = "flytekit"
    PACKAGE: ClassVar = "flytekit"
    KEY: ClassVar = "flyte"
    LOGGERS: ClassVar = ("flytekit",)
    KEEPS: ClassVar = ("checkpoints", "curve", "samples")

    def login(self) -> None:
        state = self.module("flytekit.core.context_manager").FlyteContextManager.current_context().execution_state
        if state is None or state.mode is None:
            fix = "call trireme.train in a function with @task(enable_deck=True), or leave flyte out"
            raise NoLogin("this run is no part of a Flyte task", fix)

    def start(self, run: AboutRun) -> str:
        self._context = self.module().current_context()
        # Made here, since a thread has a context of its own.
        self._deck: Any = self.module().Deck(f"trireme: {run.name}")
        self._lines: list[Line] = []
        self._files: dict[str, str] = {}
        rows: dict[str, Any] = {"project": run.project, "group": run.group, "trial": run.trial, "tags": run.tags}
        self._recipe = table([("key", "value"), *(rows | run.flat).items()])
        return run.name

    def write(self, lines: Sequence[Line]) -> None:
        self._lines = [*self._lines, *lines][-MOST_LINES:]

    def keep(self, kind: str, path: Path, step: int) -> None:
        if kind == "curve":
            image = base64.b64encode(path.read_bytes()).decode()
            self._files[kind] = f'<img src="data:image/png;base64,{image}">'
        elif kind == "samples":
            self._files[kind] = f"<pre>{escape(path.read_text(encoding='utf-8', errors='replace'))}</pre>"
        else:
            self._context.checkpoint.save(str(path))

    def finish(self, status: Status, reason: str) -> None:
        names = sorted({name for line in self._lines for name in line.numbers})
        rows = [("step", *names), *((line.step, *map(line.numbers.get, names)) for line in self._lines)]
        said = f"<p>{escape(f'{status}: {reason}' if reason else status)}</p>"
        self._deck.append("\n".join([said, *self._files.values(), table(rows), self._recipe]))


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a table in HTML; the first one holds the headings."""
    head, *rest = ("".join(f"<td>{escape(_shown(cell))}</td>" for cell in row) for row in rows)
    return f"<table><thead><tr>{head}</tr></thead>{''.join(f'<tr>{row}</tr>' for row in rest)}</table>"


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
