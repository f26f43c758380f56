"""``trireme checkpoints``: list checkpoints with their size, plan and metric, and say which are incomplete or damaged.

Without ``--verify``, the names and sizes of files are compared with the checkpoint's manifest. With ``--verify``, every
file is also read and its digest compared. If a save was killed, the folder that it leaves is listed as incomplete, not
as damaged, since such a folder is never loaded.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from .error_report import FAILED

COLUMNS = ("checkpoint", "size", "files", "state", "plan", "metric", "written")


@dataclass
class Listed:
    """The folder of one checkpoint, complete or not."""

    path: str
    step: int
    bytes: int
    files: int
    written: str
    """Local time of the save, in ISO 8601."""
    complete: bool
    """Whether the save has finished."""
    verified: bool = False
    """Whether every file was read and its digest compared."""
    problems: list[str] = field(default_factory=list)
    """Damages of a complete checkpoint."""
    plan: str | None = None
    world_size: int | None = None
    metric: float | None = None
    not_finite: str | None = None
    """Values that were not finite at the save (loss, weights ...); a run never resumes from such a checkpoint."""


def show_checkpoints(run: str, verify: bool, as_json: bool) -> int:
    """Print the list; returns 0 if all checkpoints are sound, 1 if one is damaged or not finite.

    Raises:
        UserError: there is none.
    """
    found = listed(Path(os.path.expanduser(run)), verify)
    if as_json:
        print(json.dumps([asdict(checkpoint) for checkpoint in found], indent=1))
    else:
        _show(found)
    return FAILED if any(checkpoint.problems or checkpoint.not_finite for checkpoint in found) else 0


def listed(path: Path, verify: bool = False) -> list[Listed]:
    """The checkpoints at ``path``, complete ones first, each group by step.

    Raises:
        UserError: there is none.
    """
    folders = _folders(path)
    if not folders:
        reason = "holds no checkpoint" if os.path.isdir(path) else "is not a folder"
        raise UserError(Problem("RUN", reason, "name a run folder, such as runs/persimmon_stdlib", str(path)))
    if not verify:
        return [_examined(folder, digests=False) for folder in folders]
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("verifying", total=sum(_size(folder) for folder in folders))
        result = []
        for folder in folders:
            progress.update(bar, description=f"verifying {folder.name}")
            result.append(_examined(folder, digests=True, checked=lambda size: progress.advance(bar, size)))
    return result


def _folders(path: Path) -> list[Path]:
    """Folders of checkpoints by step; hidden folders, left by a killed save or rotation, come last."""
    if _step(path) is not None:
        return [path] if os.path.isdir(path) else []
    for root in (path, path / "checkpoints"):
        folders = [folder for folder in root.glob("*step_*") if folder.is_dir() and _step(folder) is not None]
        if folders:
            return sorted(folders, key=lambda folder: (folder.name.startswith("."), _step(folder), folder.name))
    return []


def _step(folder: Path) -> int | None:
    """Step of a checkpoint's folder, also of a hidden one of an unfinished save; None for other folders."""
    digits = folder.name.removeprefix(".").removeprefix("step_").split(".")[0]
    return int(digits) if digits.isdigit() and "step_" in folder.name else None


def _examined(folder: Path, digests: bool, checked: Callable[[int], None] = lambda size: None) -> Listed:
    from ..trainer.checkpoint.layout import MANIFEST, damages, files_of

    hidden = folder.name.startswith(".")
    manifest = folder / MANIFEST
    when = (manifest if manifest.is_file() else folder).stat().st_mtime
    result = Listed(
        path=str(folder),
        step=_step(folder) or 0,
        bytes=_size(folder),
        files=len(files_of(folder)) + manifest.is_file(),
        written=datetime.datetime.fromtimestamp(when).astimezone().isoformat(timespec="seconds"),
        complete=not hidden,
    )
    if hidden:
        checked(result.bytes)
        return result
    for key, value in _manifest(folder).items():
        setattr(result, key, value)
    result.problems = list(damages(folder, digests, checked))
    result.verified = digests
    return result


def _manifest(folder: Path) -> dict[str, Any]:
    from ..trainer.checkpoint.layout import read_manifest

    try:
        manifest = read_manifest(folder)
    except ValueError:  # ``damages`` reports an unreadable manifest
        return {}
    keys = ("plan", "world_size", "metric", "not_finite")
    return {key: manifest.get(key) for key in keys} if isinstance(manifest, dict) else {}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _show(found: Sequence[Listed]) -> None:
    from rich.filesize import decimal

    from .listing import show_table

    rows = []
    for checkpoint in found:
        plan = f"{checkpoint.plan} x {checkpoint.world_size}" if checkpoint.plan else ""
        metric = "" if checkpoint.metric is None else f"{checkpoint.metric:.4f}"
        written = checkpoint.written[:19].replace("T", " ")
        cells = (decimal(checkpoint.bytes), str(checkpoint.files), _state(checkpoint), plan, metric, written)
        rows.append((Path(checkpoint.path).name, *cells))
    show_table(COLUMNS, rows)


def _state(checkpoint: Listed) -> str:
    if not checkpoint.complete:
        return "incomplete, never loaded"
    if checkpoint.problems:
        return "damaged: " + "; ".join(checkpoint.problems)
    state = "complete, verified" if checkpoint.verified else "complete"
    return f"{state}, not finite: {checkpoint.not_finite}" if checkpoint.not_finite else state
