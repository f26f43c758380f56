"""Which checkpoints of a run stay: the newest and the best of them, and those that a run has gone back from."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from .checkpoint_config import CheckpointConfig
from .layout import checkpoints_under, complete_checkpoints, metric_of, not_finite, read_manifest, step_of

log = logging.getLogger("trireme.checkpoint")


def remove_old(root: Path, config: CheckpointConfig, step: int) -> None:
    """Remove what ``keep_last`` and ``keep_best`` do not keep, after a checkpoint of ``step`` was written."""
    if config.keep_last is None:
        return
    # Later ones were damaged and passed over, or gone back from: they must not push out what is written now.
    folders = [folder for folder in complete_checkpoints(root) if step_of(folder) <= step]
    # One that is not finite pushes out none that is; the newest of them is kept, to look at.
    sound = [folder for folder in folders if not_finite(folder) is None]
    best = best_first(sound, config.mode)[: config.keep_best] if config.keep_best else []
    keep = {*sound[: config.keep_last], *best, folders[0]}
    for folder in folders:
        if folder not in keep:
            _remove(folder)


def best_first(folders: Iterable[Path], mode: str) -> list[Path]:
    """Those with a metric that is a number, the best first; ``mode`` is ``min`` or ``max``."""
    metrics = {folder: metric_of(folder) for folder in folders}
    judged = {folder: metric for folder, metric in metrics.items() if metric is not None}
    return sorted(judged, key=judged.__getitem__, reverse=mode == "max")


def set_later_aside(root: Path, resumed: Path | None) -> None:
    """Rename checkpoints of steps after ``resumed``, from which a run goes on.

    They belong to a branch that the run has left, and the next start would go on from the newest of them.

    Args:
        resumed: None, or a checkpoint of another run, sets all of this run's aside.

    Raises:
        OSError: one cannot be renamed.
    """
    own = checkpoints_under(root)
    if resumed is not None and resumed.resolve().parent == root.resolve():
        step = read_manifest(resumed)["step"]
        own = [folder for folder in own if step_of(folder) > step]
    for folder in own:
        names = (f"{folder.name}.abandoned{f'.{number}' if number else ''}" for number in range(10_000))
        target = next(path for name in names if not (path := folder.with_name(name)).exists())
        os.replace(folder, target)
        log.warning("%s is kept as %s: the run goes on from before it", folder.name, target)


def _remove(folder: Path) -> None:
    # Renamed first: a process killed while deleting must not leave half a checkpoint under its name.
    doomed = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.replace(folder, doomed)
    except OSError as error:
        log.warning("checkpoint %s could not be removed: %s", folder, error.strerror or error)
    shutil.rmtree(doomed, ignore_errors=True)
