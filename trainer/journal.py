"""Write and read the journal of a run, ``journal.jsonl``: its starts and ends and, with the callback ``report``, its
checkpoints, rollbacks and measurements, each with its time.

Rank 0 appends one line of JSON per event. Lines are never removed, so the journal shows after the run why and when it
was restarted. A start without an end means that the process was killed or its machine was lost.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callbacks.metrics_file import json_value
from .regular_files import read_regular

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")
FILE = "journal.jsonl"
STARTED, MEASURED, SAVED, BACK, ENDED = "started", "measured", "saved", "back", "ended"


class Journal:
    """Appends events to the journal of a run. A full disk costs the journal only."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self._warned = run_dir / FILE, False

    def note(self, event: str, step: int, **facts: Any) -> None:
        line = {"event": event, "time": now(), "step": step, **json_value(facts)}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        except OSError as error:
            if not self._warned:
                log.warning("%s is not written: %s", self.path, error.strerror or error)
            self._warned = True


@contextmanager
def noted(trainer: Trainer) -> Iterator[None]:
    """Context that notes the start and the end of a run, unless a callback notes them in more detail."""
    others = any(getattr(callback, "keeps_journal", False) for callback in trainer.callbacks.values())
    if others or not trainer.mesh.is_main:
        yield
        return
    journal, recipe, mesh = Journal(trainer.run_dir), trainer.recipe, trainer.mesh
    about = {"plan": recipe.plan.name, "ranks": mesh.world_size, "device": mesh.device.type}
    about |= {"process": os.getpid(), "machine": {"host": socket.gethostname()}}
    state = trainer.state  # a callback that replaces it ends the run
    journal.note(STARTED, state.step, **about)
    try:
        yield
    finally:
        how, reason = ending(trainer, sys.exception())
        journal.note(ENDED, state.step, how=how, reason=reason)


def ending(trainer: Trainer, error: BaseException | None) -> tuple[str, str]:
    """How a run ends, and why: done, stopped (by a callback), left (to be resumed), failed."""
    control, state = trainer.control, trainer.state
    if error is not None:
        left = isinstance(error, KeyboardInterrupt | SystemExit)
        return ("left" if left else "failed"), f"{type(error).__name__}: {error}"[:2000]
    if control.interrupted:
        return "left", control.reason
    return ("stopped", control.reason) if control.stop and state.step < state.stop_at else ("done", "")


def now() -> str:
    """Local time with its zone, in ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events in their order, without lines that were cut off; empty if there is no journal."""
    events = []
    try:
        lines = read_regular(path).splitlines()
    except OSError:
        return []
    for raw in lines:
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):  # cut off by a kill
            continue
        if isinstance(line, dict) and isinstance(line.get("event"), str) and isinstance(line.get("step"), int):
            events.append(line)
    return events
