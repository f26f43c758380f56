"""The checkpoints of a run: when they are written, by whom, which are kept, and which one to go on from."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ...errors import Problem, UserError
from ...parallel.mesh import Mesh
from ..collective import StepFailed, Together
from ..nodes import Nodes
from .checkpoint_config import CheckpointConfig
from .layout import checkpoints_under, complete_checkpoints, metric_of, not_finite, read_manifest
from .load.find_checkpoint import by_step, find, newest_usable, step_of
from .save.staging import Staging
from .save.write_checkpoint import Contents, Writer

__all__ = ["Checkpoints", "Contents"]

log = logging.getLogger("trireme.checkpoint")


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    ``save`` writes while the caller waits. ``begin`` has a thread write, which talks to the other ranks' threads
    through a process group of its own; ``end`` waits for it. Tensors must be copies (``staging``), which the thread
    makes; until ``settle`` has returned, what they are copies of may not change.
    """

    def __init__(self, root: Path, config: CheckpointConfig, mesh: Mesh, nodes: Nodes | None = None) -> None:
        """A collective call."""
        self.root, self.config, self.mesh = root, config, mesh
        self.nodes = nodes or Nodes((0,) * mesh.world_size, mesh.rank)
        self.asynchronous = config.asynchronous
        self.staging = Staging()
        self._writer = Writer(root, Together(mesh, mesh.new_group() if config.asynchronous else None), self.nodes)
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[Path | None] | None = None

    def save(self, contents: Contents) -> Path | None:
        """Write a checkpoint. A collective call; none is in flight.

        Returns:
            Its folder; None when writing failed, in which case nothing that was there before is touched.
        """
        path = self._writer.write(contents)
        if path is not None and self.nodes.leads:
            self._rotate(contents.step)
        return path

    def staged(self) -> bool:
        """Whether all ranks had room for their copies; a collective call.

        If not, what was taken can be saved while the caller waits, and ``asynchronous`` is off from now on.
        """
        self.staging.wait()
        if self.mesh.any_flags([self.staging.full])[0]:
            self.staging.copy()
            self.staging.release()
            self.asynchronous = False
            if self.mesh.is_main:
                log.warning("no memory for a copy of the training state: training waits while checkpoints are written")
        return self.asynchronous

    def begin(self, contents: Contents) -> None:
        """Write a checkpoint in the background; all ranks call it, and none is in flight."""
        assert self._written is None, "a checkpoint is in flight"
        # A thread for each: one that has given way cannot take that back, and the next copies are waited for.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self.staging.begin()
        self._written = self._thread.submit(self._copy_and_save, replace(contents, state=copy.deepcopy(contents.state)))

    def _copy_and_save(self, contents: Contents) -> Path | None:
        self.staging.copy()
        _give_way()
        return self.save(contents)

    def settle(self) -> None:
        """Until the training state may change again."""
        self.staging.settle()

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint was begun and not ended; equal on all ranks."""
        return self._written is not None

    @property
    def writing(self) -> bool:
        """Whether this rank has work left on the checkpoint in flight."""
        return self._written is not None and not self._written.done()

    def end(self) -> Path | None:
        """Wait for the checkpoint in flight; what ``save`` would have given, or raised."""
        assert self._written is not None, "no checkpoint is in flight"
        self.staging.settle()
        written, self._written = self._written, None
        try:
            return written.result()
        finally:
            self._stop()

    def close(self) -> None:
        """After a failure elsewhere: let the checkpoint in flight be completed, if the other ranks still can."""
        if self._written is not None:
            try:
                self.end()
            except Exception as error:
                log.warning("the checkpoint in flight was not written: %s", error)
        self._stop()

    def _stop(self) -> None:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def find(self, resume: str) -> Path | None:
        """The checkpoint to resume from; see ``find.find``. A collective call."""
        return find(self.root, resume, Together(self.mesh), self.nodes)

    def newest_of(self, candidates: Callable[[], list[Path]]) -> Path | None:
        """The newest whole one of ``candidates``, which nodes may know different ones of. A collective call."""
        together = Together(self.mesh)
        found = together(lambda: candidates() if self.nodes.leads else [])
        return newest_usable(by_step(found), together, self.nodes, "--resume")[0]

    def leave_behind(self, began: Path | None) -> None:
        """Where a run goes back, what it had saved later is kept under another name and not found again: of two
        branches the newest checkpoint would be that of the older one. A collective call.

        Args:
            began: where it goes on from; of another run, or None, it leaves all of its own behind.

        Raises:
            UserError: they cannot be renamed.
        """
        try:
            Together(self.mesh)(lambda: self._rename_later(began) if self.nodes.leads else None)
        except StepFailed as failure:
            why = f"has later checkpoints, which cannot be renamed: {failure}"
            raise UserError(Problem("run.dir", why, "choose another run.dir", str(self.root.parent))) from None

    def _rename_later(self, began: Path | None) -> None:
        own = checkpoints_under(self.root)
        if began is not None and began.resolve().parent == self.root.resolve():
            step = read_manifest(began)["step"]
            own = [folder for folder in own if step_of(folder) > step]
        for folder in own:
            names = (f"{folder.name}.abandoned{f'.{number}' if number else ''}" for number in range(10_000))
            target = next(path for name in names if not (path := folder.with_name(name)).exists())
            os.replace(folder, target)
            log.warning("%s is kept as %s: the run goes on from before it", folder.name, target)

    def _rotate(self, step: int) -> None:
        if self.config.keep_last is None:
            return
        # Later ones were passed over as damaged, or gone back from: they must not push out what is written now.
        folders = [folder for folder in complete_checkpoints(self.root) if int(folder.name[5:]) <= step]
        # One that is not finite pushes out none that is; the newest of them is kept, to look at.
        sound = [folder for folder in folders if not_finite(folder) is None]
        best = self.best(sound)[: self.config.keep_best] if self.config.keep_best else []
        keep = {*sound[: self.config.keep_last], *best, folders[0]}
        for folder in folders:
            if folder not in keep:
                # Renamed first: a process killed while deleting must not leave half a checkpoint under its name.
                doomed = folder.with_name(f".{folder.name}.deleted")
                shutil.rmtree(doomed, ignore_errors=True)
                try:
                    os.replace(folder, doomed)
                except OSError as error:
                    log.warning("checkpoint %s could not be removed: %s", folder, error.strerror or error)
                shutil.rmtree(doomed, ignore_errors=True)

    def best(self, folders: list[Path]) -> list[Path]:
        """Those with a metric that is a number, and finite weights, best first."""
        metrics = {folder: metric_of(folder) for folder in folders if not_finite(folder) is None}
        judged = {folder: metric for folder, metric in metrics.items() if metric is not None}
        return sorted(judged, key=judged.__getitem__, reverse=self.config.mode == "max")


def _give_way() -> None:
    """Where cores are short, training goes first from now on. Linux counts the niceness of each thread by itself."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
