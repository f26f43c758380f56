"""Write one checkpoint, by a sequence of operations that all ranks carry out together.

It runs in the training thread or in a background thread. A checkpoint folder is written under a hidden name, flushed to
disk, given its manifest and renamed. If nodes have no shared disk, each has a folder of this name, with the shards of
its own ranks and a copy of all other files.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....version import __version__
from ...collective import AnyRankFailed
from ..layout import (
    FORMAT,
    NATIVE,
    STATE,
    TENSORS,
    describe_file,
    files_of,
    flush,
    step_folder,
    swap_names,
    write_manifest,
)
from ..nodes.node_files import NodeFiles
from .write_tensors import write_tensors

log = logging.getLogger("trireme.checkpoint")


@dataclass
class Contents:
    """The contents of one checkpoint."""

    step: int
    tensors: dict[str, Tensor]
    """This rank's tensors by global name."""
    state: dict[str, Any]
    """Content of ``state.json``, equal on all ranks."""
    assets: Callable[[Path], None]
    """Writes recipe, model configuration and tokenizer into a folder; called on rank 0."""
    plan: str
    """Name of the plan."""
    native: Callable[[Path], None] | None = None
    """Writes the engine's own files into a folder; called on every rank."""
    metric: float | None = None
    """Value of ``checkpoint.metric`` at this step, if it was evaluated."""
    not_finite: str = ""
    """Description of what is not finite; empty if weights and loss are."""


class Writer:
    """Writes checkpoints under ``root``, one at a time."""

    def __init__(self, root: Path, nodes: NodeFiles) -> None:
        """
        Args:
            nodes: needs a process group of its own if ``write`` is called outside of the training thread.
        """
        self.root, self.nodes, self.collective = root, nodes, nodes.collective
        self.mesh = nodes.collective.mesh

    def write(self, contents: Contents) -> Path | None:
        """Write a checkpoint; a collective call.

        Returns:
            The checkpoint's folder; None if writing failed, which leaves earlier checkpoints untouched.
        """
        collective, nodes, target = self.collective, self.nodes, step_folder(self.root, contents.step)
        partial = self.root / f".{target.name}.partial"
        self._renamed = False
        try:
            nodes.on_each(lambda: self._start(partial))
            shards = collective(lambda: self._write_tensors(partial, contents))
            native = collective(lambda: self._write_native(partial, contents))
            common = collective(lambda: self._write_rest(partial, contents))[0]
            nodes.distribute(partial, common)
            parts = [ours | engine for ours, engine in zip(shards, native, strict=True)]
            manifest = self._manifest(contents, common, parts)
            nodes.on_each(lambda: write_manifest(partial, manifest))
            nodes.on_each(lambda: self._rename(partial, target))
        except AnyRankFailed as failure:
            log.error(
                "checkpoint at step %d was not written: %s. Training goes on; earlier checkpoints are untouched.",
                contents.step,
                failure,
            )
            self._undo(partial, target)
            return None
        if self.nodes.leads:
            shutil.rmtree(_replaced(target), ignore_errors=True)
        return target

    def _start(self, partial: Path) -> None:
        for left in self.root.glob(".step_*"):  # left by a process that was killed while it saved or deleted
            shutil.rmtree(left, ignore_errors=True)
        (partial / TENSORS).mkdir(parents=True)

    def _write_tensors(self, partial: Path, contents: Contents) -> dict[str, Any]:
        """Write this rank's shards and return their manifest entries."""
        distributed, group = self.mesh.world_size > 1, self.collective.group
        written = write_tensors(contents.tensors, partial / TENSORS, distributed, group)
        return {f"{TENSORS}/{name}": description for name, description in written.items()}

    def _write_native(self, partial: Path, contents: Contents) -> dict[str, Any]:
        """Write the engine's own files and return the manifest entries of this node."""
        if contents.native is None:
            return {}
        contents.native(partial / NATIVE)
        names = [name for name in files_of(partial) if name.startswith(f"{NATIVE}/")] if self.nodes.leads else []
        for name in names:
            flush(partial / name)
        return {name: describe_file(partial / name) for name in names}

    def _write_rest(self, partial: Path, contents: Contents) -> dict[str, Any]:
        """Write every file that is not a shard and return their manifest entries."""
        if not self.mesh.is_main:
            return {}
        (partial / STATE).write_text(json.dumps(contents.state, indent=1))
        contents.assets(partial)
        names = [name for name in files_of(partial) if not name.startswith((f"{TENSORS}/", f"{NATIVE}/"))]
        for name in names:
            flush(partial / name)
        return {name: describe_file(partial / name) for name in names}

    def _manifest(self, contents: Contents, common: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
        shards = {name: written for part in parts for name, written in part.items()}
        manifest = {
            "format": FORMAT,
            "trireme": __version__,
            "step": contents.step,
            "plan": contents.plan,
            "world_size": self.mesh.world_size,
            "metric": contents.metric,
            "not_finite": contents.not_finite or None,
            "files": common | shards,
        }
        if holders := self.nodes.holders(parts):
            manifest["nodes"] = holders
        return manifest

    def _rename(self, partial: Path, target: Path) -> None:
        if target.exists():  # the run was resumed from an earlier step, and writes this step again
            shutil.rmtree(_replaced(target), ignore_errors=True)
            if swap_names(partial, target):
                os.replace(partial, _replaced(target))
            else:  # a kill between the two renames loses this step
                os.replace(target, _replaced(target))
                os.replace(partial, target)
        else:
            os.replace(partial, target)
        self._renamed = True
        flush(self.root)

    def _undo(self, partial: Path, target: Path) -> None:
        """Remove the attempt on this node, and restore the checkpoint that it replaced."""
        if not self.nodes.leads:
            return
        shutil.rmtree(target if self._renamed else partial, ignore_errors=True)
        if _replaced(target).exists():
            os.replace(_replaced(target), target)


def _replaced(target: Path) -> Path:
    """Path of the old checkpoint of a step until the new one of the same step is complete."""
    return target.with_name(f".{target.name}.replaced")
