"""Remove old checkpoints of a run, except the newest and the best, and tell which one is the best.

After a resume from an earlier checkpoint, also rename the checkpoints of later steps, so that no later start resumes
from them.
"""

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
    """After a checkpoint of ``step`` was written, remove those that ``keep_last`` and ``keep_best`` do not keep."""
    if config.keep_last is None:
        return
    # Checkpoints of later steps are damaged or abandoned, and must not count against the one that was just written.
    folders = [folder for folder in complete_checkpoints(root) if step_of(folder) <= step]
    # Checkpoints that are not finite do not count either. The newest checkpoint is always kept, for inspection.
    sound = [folder for folder in folders if not_finite(folder) is None]
    best = best_first(sound, config.mode)[: config.keep_best] if config.keep_best else []
    keep = {*sound[: config.keep_last], *best, folders[0]}
    for folder in folders:
        if folder not in keep:
            _remove(folder)


def best_first(folders: Iterable[Path], mode: str) -> list[Path]:
    """Checkpoints with a finite metric, the best first; ``mode`` is ``min`` or ``max``."""
    metrics = {folder: metric_of(folder) for folder in folders}
    judged = {folder: metric for folder, metric in metrics.items() if metric is not None}
    return sorted(judged, key=judged.__getitem__, reverse=mode == "max")


def best_checkpoint(root: Path, config: CheckpointConfig) -> Path | None:
    """The complete checkpoint under ``root`` with the best ``checkpoint.metric``; None if none was evaluated."""
    sound = [folder for folder in complete_checkpoints(root) if not_finite(folder) is None]
    return next(iter(best_first(sound, config.mode)), None)


def set_later_aside(root: Path, resumed: Path | None) -> None:
    """Rename the checkpoints of steps after ``resumed``, from which a run goes on.

    The run has abandoned these steps, but the next start would resume from the newest checkpoint among them.

    Args:
        resumed: the checkpoint to go on from; if it is None or of another run, all checkpoints here are renamed.

    Raises:
        OSError: a checkpoint cannot be renamed.
    """
    own = checkpoints_under(root)
    if resumed is not None and resumed.resolve().parent == root.resolve():
        step = read_manifest(resumed)["step"]
        own = [folder for folder in own if step_of(folder) > step]
    for folder in own:
        names = (f"{folder.name}.abandoned{f'.{number}' if number else ''}" for number in range(10_000))
        target = next(path for name in names if not (path := folder.with_name(name)).exists())
        os.replace(folder, target)
        log.warning("%s is kept as %s: the run goes on from an earlier step", folder.name, target)


def _remove(folder: Path) -> None:
    # Renamed first, so that a process killed while deleting leaves no partial checkpoint under the name.
    doomed = folder.with_name(f".{folder.name}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        os.replace(folder, doomed)
    except OSError as error:
        log.warning("checkpoint %s could not be removed: %s", folder, error.strerror or error)
    shutil.rmtree(doomed, ignore_errors=True)
