"""The checkpoints of a run: written whole or not at all, rotated, found again, verified before use."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ... import Problem, UserError, __version__
from ...parallel.mesh import Mesh
from .config import CheckpointConfig
from .layout import (
    FORMAT,
    MANIFEST,
    NATIVE,
    STATE,
    TENSORS,
    checkpoints_at,
    complete_checkpoints,
    describe_file,
    files_of,
    flush,
    read_manifest,
    step_folder,
    verify,
)
from .source import open_source
from .tensors import write_tensors

log = logging.getLogger("trireme.checkpoint")
T = TypeVar("T")


@dataclass
class Contents:
    """What goes into one checkpoint."""

    step: int
    tensors: dict[str, Tensor]
    """This rank's tensors by global name."""
    state: dict[str, Any]
    """JSON, equal on all ranks."""
    assets: Callable[[Path], None]
    """Writes recipe, model configuration and tokenizer into a folder (called on rank 0)."""
    plan: str
    native: Callable[[Path], None] | None = None
    """Writes the engine's own files into a folder (called on every rank)."""
    metric: float | None = None
    """Value of ``checkpoint.metric`` at this step, if it was evaluated."""


class SaveFailed(Exception):
    """A rank could not write its part; raised on every rank."""


class Checkpoints:
    """The folder ``checkpoints/`` of a run."""

    def __init__(self, root: Path, config: CheckpointConfig, mesh: Mesh) -> None:
        self.root, self.config, self.mesh = root, config, mesh

    def save(self, contents: Contents) -> Path | None:
        """Write a checkpoint. A collective call.

        Returns:
            Its folder; None when writing failed, in which case nothing that was there before is touched.
        """
        target = step_folder(self.root, contents.step)
        partial = self.root / f".{target.name}.partial"
        try:
            self._together(lambda: self._start(partial))
            self._together(lambda: write_tensors(contents.tensors, partial / TENSORS, self.mesh.world_size > 1))
            self._together(lambda: self._write_rest(partial, contents))
            if contents.native is not None:
                write_native = contents.native
                self._together(lambda: write_native(partial / NATIVE))
            parts = self._together(lambda: self._describe_share(partial))
            files = {name: entry for part in parts for name, entry in part.items()}
            self._together(lambda: self._finish(partial, target, contents, files))
        except SaveFailed as failure:
            log.error(
                "checkpoint at step %d was not written: %s. Training goes on; earlier checkpoints are untouched.",
                contents.step,
                failure,
            )
            if self.mesh.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            return None
        if self.mesh.is_main:
            self._rotate()
        return target

    def find(self, resume: str) -> Path | None:
        """The checkpoint to resume from, verified; equal on all ranks.

        Args:
            resume: ``auto`` (the newest whole one of this run, if any), ``never``, or a checkpoint or run folder.

        Raises:
            UserError: the named checkpoint is missing or damaged, or every checkpoint of the run is.
        """
        found = self._look(resume) if self.mesh.is_main else None
        found = self.mesh.broadcast_object(found)
        if isinstance(found, Problem):
            raise UserError(found)
        return Path(found) if found else None  # type: ignore[arg-type]

    def _look(self, resume: str) -> str | Problem | None:
        if resume == "never":
            return None
        named = None if resume == "auto" else Path(resume).expanduser()
        candidates = complete_checkpoints(self.root) if named is None else checkpoints_at(named)
        if named is not None and not candidates:
            return self._look_elsewhere(named)
        reason = None
        for folder in candidates:
            reason = verify(folder)
            if reason is None:
                return str(folder)
            log.warning("checkpoint %s %s; it is left as it is and not used", folder, reason)
        if candidates:
            return Problem(
                "--resume",
                f"no usable checkpoint: {candidates[-1].name} {reason}",
                "name another with --resume PATH, or start over with --fresh (the old folder is kept)",
                str(candidates[0].parent),
            )
        return None

    def _look_elsewhere(self, named: Path) -> str | Problem:
        """A checkpoint that trireme did not write: where a run begins, never where it silently begins again."""
        fix = "name a folder such as RUN/checkpoints/step_00000100"
        if not named.exists():
            return Problem("--resume", "does not exist", fix, str(named))
        try:
            source = open_source(named)
            source.progress()  # refuses files of weights alone
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # the latter: files that hold something else
            return Problem("--resume", str(error), fix, str(named))
        own = complete_checkpoints(self.root)
        if own:
            return Problem(
                "--resume",
                f"would begin again there, but the run has gone on since: {own[0]}",
                "leave --resume out to go on from the newest, or add --fresh to begin again (the run folder is kept)",
                str(named),
            )
        return str(source.path)

    # -- the steps of a save, each on all ranks ---------------------------------------------------------------

    def _together(self, function: Callable[[], T]) -> list[T]:
        """Run on every rank; if it fails on one, fail on all with the first error."""
        value, error = None, None
        try:
            value = function()
        except OSError as failure:
            error = f"{failure.strerror or failure}" + (f": {failure.filename}" if failure.filename else "")
        results = self.mesh.gather_objects((value, error))
        errors = [error for _, error in results if error]
        if errors:
            raise SaveFailed(errors[0])
        return [value for value, _ in results]

    def _start(self, partial: Path) -> None:
        if self.mesh.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            (partial / TENSORS).mkdir(parents=True)

    def _write_rest(self, partial: Path, contents: Contents) -> None:
        if self.mesh.is_main:
            (partial / STATE).write_text(json.dumps(contents.state, indent=1))
            contents.assets(partial)

    def _describe_share(self, partial: Path) -> dict[str, Any]:
        share = files_of(partial)[self.mesh.rank :: self.mesh.world_size]
        for name in share:
            flush(partial / name)
        return {name: describe_file(partial / name) for name in share}

    def _finish(self, partial: Path, target: Path, contents: Contents, files: dict[str, Any]) -> None:
        if not self.mesh.is_main:
            return
        manifest = {
            "format": FORMAT,
            "trireme": __version__,
            "step": contents.step,
            "plan": contents.plan,
            "world_size": self.mesh.world_size,
            "metric": contents.metric,
            "files": files,
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in (partial / MANIFEST, *(path for path in partial.rglob("*") if path.is_dir()), partial):
            flush(path)
        replaced = self.root / f".{target.name}.replaced"
        if target.exists():  # resumed from an earlier step: this step is written a second time
            os.replace(target, replaced)
        os.replace(partial, target)
        flush(self.root)
        shutil.rmtree(replaced, ignore_errors=True)

    def _rotate(self) -> None:
        if self.config.keep_last is None:
            return
        folders = complete_checkpoints(self.root)
        keep = set(folders[: self.config.keep_last]) | set(self.best(folders)[: self.config.keep_best])
        for folder in folders:
            if folder not in keep:
                # Renamed first: a process killed while deleting must not leave half a checkpoint under its name.
                doomed = folder.with_name(f".{folder.name}.deleted")
                os.replace(folder, doomed)
                shutil.rmtree(doomed, ignore_errors=True)

    def best(self, folders: list[Path]) -> list[Path]:
        """Those with a metric, best first."""
        metrics = {folder: read_manifest(folder).get("metric") for folder in folders}
        judged: dict[Path, float] = {folder: metric for folder, metric in metrics.items() if metric is not None}
        return sorted(judged, key=judged.__getitem__, reverse=self.config.mode == "max")
