"""Keep checkpoints from which other trials of a search start, even if the run that wrote a checkpoint deletes it.

Population based training starts trials like this. A kept checkpoint is a folder of hard links in the study's folder, so
it takes no space until its run removes the original.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER = "starts"
SECONDS = 60.0
"""Seconds in which a run must have written the checkpoint of a step that it was told to save."""


@dataclass(frozen=True)
class Start:
    """A state from which a trial begins."""

    trial: int
    """Trial of the study that was in this state."""
    step: int

    @property
    def path(self) -> str:
        """The path of the checkpoint, relative to the study's folder."""
        return f"{FOLDER}/trial_{self.trial:04d}/step_{self.step:08d}"


def keep_start(study: Path, start: Start) -> None:
    """Keep a checkpoint as soon as its run has written it; in a thread."""
    threading.Thread(target=_keep, args=(study, start), daemon=True).start()


def remove_starts(study: Path) -> None:
    """Remove all kept checkpoints. No trial may begin from them any more."""
    shutil.rmtree(study / FOLDER, ignore_errors=True)


def _keep(study: Path, start: Start) -> None:
    kept = study / start.path
    written = study / kept.parent.name / "checkpoints" / kept.name
    deadline = time.monotonic() + SECONDS
    while not written.is_dir():
        if kept.is_dir() or time.monotonic() > deadline:
            return
        time.sleep(0.02)
    partial = kept.with_name(f".{kept.name}")
    try:
        shutil.copytree(written, partial, copy_function=os.link, dirs_exist_ok=False)
        partial.rename(kept)
    except OSError:  # another thread keeps it, or its run has removed it already
        return
