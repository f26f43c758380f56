"""Manage the checkpoints of a run: write them, also in the background, remove old ones, find the one to resume from."""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ...errors import Problem, UserError
from ...parallel.mesh import Mesh
from ..collective import AnyRankFailed, Collective
from .checkpoint_config import CheckpointConfig
from .load.find_checkpoint import by_step, find, newest_usable
from .nodes.find_nodes import Nodes
from .nodes.node_files import NodeFiles
from .retention import remove_old, set_later_aside
from .save.staging import Staging
from .save.write_checkpoint import Contents, Writer

__all__ = ["Checkpoints", "Contents"]

log = logging.getLogger("trireme.checkpoint")


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    ``save`` writes while the caller waits. ``begin`` starts a thread that writes; it communicates with the threads of
    other ranks through a process group of its own. ``end`` waits for the thread. The thread writes copies of tensors
    (``staging``), which it makes itself, so the originals may not change before ``wait_for_copies`` has returned.
    """

    def __init__(self, root: Path, config: CheckpointConfig, mesh: Mesh, nodes: Nodes | None = None) -> None:
        """This is a collective call.

        Args:
            root: the folder ``checkpoints/`` of the run.
            nodes: which ranks share a disk; None means that all do.
        """
        self.root, self.config, self.mesh = root, config, mesh
        one = Nodes((0,) * mesh.world_size, mesh.rank)
        self.nodes = NodeFiles(Collective(mesh), nodes or one)
        self.asynchronous = config.asynchronous
        self.staging = Staging()
        background = Collective(mesh, mesh.new_group() if config.asynchronous else None)
        self._writer = Writer(root, NodeFiles(background, self.nodes.nodes))
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[Path | None] | None = None

    def save(self, contents: Contents) -> Path | None:
        """Write a checkpoint; a collective call. No checkpoint may be in flight.

        Returns:
            The checkpoint's folder; None if writing failed, which leaves earlier checkpoints untouched.
        """
        path = self._writer.write(contents)
        if path is not None and self.nodes.leads:
            remove_old(self.root, self.config, contents.step)
        return path

    def staged(self) -> bool:
        """Whether all ranks have memory for their copies; a collective call.

        If not, the state must be written by ``save``, and ``asynchronous`` is off from now on.
        """
        self.staging.wait_for_gpu()
        if self.mesh.any_flags([self.staging.full])[0]:
            self.staging.make_copies()
            self.staging.free()
            self.asynchronous = False
            if self.mesh.is_main:
                log.warning("no memory for a copy of the training state: training waits while checkpoints are written")
        return self.asynchronous

    def begin(self, contents: Contents) -> None:
        """Write a checkpoint in the background; a collective call. No checkpoint may be in flight."""
        assert self._written is None, "a checkpoint is in flight"
        # Every checkpoint has a new thread, because a thread cannot raise its priority again after it was lowered, and
        # training waits for the thread's copies.
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self.staging.begin()
        self._written = self._thread.submit(self._copy_and_save, replace(contents, state=copy.deepcopy(contents.state)))

    def _copy_and_save(self, contents: Contents) -> Path | None:
        self.staging.make_copies()
        _lower_priority()
        return self.save(contents)

    def wait_for_copies(self) -> None:
        """Wait until the training state may change again."""
        self.staging.wait_for_copies()

    @property
    def in_flight(self) -> bool:
        """Whether a checkpoint was begun and has not ended; equal on all ranks."""
        return self._written is not None

    @property
    def writing(self) -> bool:
        """Whether this rank has work left on the checkpoint in flight."""
        return self._written is not None and not self._written.done()

    def end(self) -> Path | None:
        """Wait for the checkpoint in flight; returns and raises as ``save`` does."""
        assert self._written is not None, "no checkpoint is in flight"
        self.staging.wait_for_copies()
        written, self._written = self._written, None
        try:
            return written.result()
        finally:
            self._stop()

    def close(self) -> None:
        """Complete the checkpoint in flight, if the other ranks still can. Called after failures too."""
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
        """The checkpoint to resume from (``find_checkpoint.find``); a collective call."""
        return find(self.root, resume, self.nodes)

    def newest_of(self, candidates: Callable[[], list[Path]]) -> Path | None:
        """The newest undamaged one of ``candidates``, which may differ between nodes; a collective call."""
        return newest_usable(by_step(self.nodes.on_each(candidates)), self.nodes, "--resume")[0]

    def set_later_aside(self, resumed: Path | None) -> None:
        """Rename this run's checkpoints of steps after ``resumed`` (``retention.set_later_aside``); a collective call.

        Raises:
            UserError: they cannot be renamed.
        """
        try:
            self.nodes.on_each(lambda: set_later_aside(self.root, resumed))
        except AnyRankFailed as failure:
            why = f"has later checkpoints, which cannot be renamed: {failure}"
            raise UserError(Problem("run.dir", why, "choose another run.dir", str(self.root.parent))) from None


def _lower_priority() -> None:
    """Let training run first if cores are short. On Linux each thread has a priority of its own."""
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
