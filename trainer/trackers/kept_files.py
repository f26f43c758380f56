"""Find the files of a run that trackers upload (curve plot, samples, log), and link its checkpoints for the upload.

A checkpoint is passed on as a folder of hard links, so that it can be removed from the run folder during the upload.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checkpoint.layout import not_finite

FILES = {"curve": "curve.png", "samples": "samples.txt", "log": "log.txt"}
LINKS = ".tracked"
"""Folder in the run folder with hard links to checkpoints on their way, which the rotation may delete meanwhile."""


def files_of_run(run_dir: Path, kinds: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The files of some kinds that are there."""
    for kind in kinds:
        if kind in FILES and (path := run_dir / FILES[kind]).is_file():
            yield kind, path


def linked(checkpoint: Path, run_dir: Path, key: str) -> Path | None:
    """A folder of hard links to a checkpoint; the checkpoint itself if the file system has no links; None if its
    weights are not finite."""
    if not_finite(checkpoint):
        return None
    folder = run_dir / LINKS / key / checkpoint.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, folder, copy_function=os.link)
    except (shutil.Error, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        return checkpoint
    return folder


def forget_all(run_dir: Path, key: str) -> None:
    """Delete links that a killed run has left."""
    for folder in sorted((run_dir / LINKS / key).glob("*")):
        forget(folder)


def forget(path: Path) -> None:
    """Delete the links to a checkpoint, and their folders if nothing else is in them."""
    links = path.parent.parent
    if links.name == LINKS:
        shutil.rmtree(path, ignore_errors=True)
        for folder in (path.parent, links):
            try:
                folder.rmdir()
            except OSError:  # others are on their way
                return
