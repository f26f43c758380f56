"""Create, rename, send, verify and remove a run's checkpoint files on all nodes (groups of ranks that share a disk).

If all ranks see one run folder, there is one node, and no file is sent. Otherwise each node keeps the shards of its own
ranks, and a copy of all other files. Before a checkpoint is loaded, every node receives the files that it lacks, so
that a run with any plan and any number of ranks can read it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ....errors import Problem, UserError
from ...collective import AnyRankFailed, Collective
from ..layout import file_damage, not_finite, other_format, read_manifest, verify, write_manifest
from .find_nodes import Nodes
from .send_file import send_file

log = logging.getLogger("trireme.checkpoint")
T = TypeVar("T")
Held = tuple[dict[str, Any], set[str]] | str
"""A node's manifest of a checkpoint and the names of its undamaged files there; or the reason why it has none."""


class NodeFiles:
    """File operations on all nodes; every method but ``holders`` is a collective call."""

    def __init__(self, collective: Collective, nodes: Nodes) -> None:
        self.collective, self.nodes = collective, nodes

    @property
    def leads(self) -> bool:
        """Whether this rank creates, renames and removes folders on its node."""
        return self.nodes.leads

    def on_each(self, function: Callable[[], T]) -> list[T]:
        """Run ``function`` on the first rank of every node and return the results by node; raises as ``Collective``."""
        results: list[Any] = self.collective(lambda: function() if self.leads else None)
        return [results[self.nodes.leader(node)] for node in range(self.nodes.count)]

    def distribute(self, folder: Path, files: dict[str, Any]) -> None:
        """Send files that the first node has written to the other nodes.

        Args:
            files: the files' entries in the manifest.

        Raises:
            AnyRankFailed: a node could not read or write.
        """
        if self.nodes.count > 1:
            for name, written in files.items():
                self._send(0, folder / name, written, receives=self.nodes.here > 0)

    def holders(self, parts: Iterable[Iterable[str]]) -> dict[str, int]:
        """The node of each file that only one node holds; empty if there is a single node.

        Args:
            parts: names of the files that each rank has written.
        """
        if self.nodes.count == 1:
            return {}
        return {name: node for node, part in zip(self.nodes.of_rank, parts, strict=True) for name in part}

    def complete(self, folder: Path, field: str) -> str | None:
        """Verify a checkpoint, whose files may lie on different nodes, and send to every node the files that it lacks.

        Args:
            field: the key or option that the user wrote.

        Returns:
            The reason why the checkpoint cannot be used; None if it can, and then every node has all files.

        Raises:
            UserError: a node has no disk space for the files that it lacks.
        """
        if reason := next(filter(None, self.on_each(lambda: _not_finite(folder))), None):
            return reason
        if self.nodes.count == 1:
            return self.on_each(lambda: verify(folder))[0]
        held = self.on_each(lambda: _held(folder))
        reason = next((entry for entry in held if isinstance(entry, str)), None)
        for manifest in [entry[0] for entry in held if not isinstance(entry, str)]:
            whole = [entry[1] if not isinstance(entry, str) and entry[0] == manifest else None for entry in held]
            lost = [name for name in manifest["files"] if not any(names and name in names for names in whole)]
            if not lost:
                self._send_missing(folder, manifest, whole, field)
                return None
            reason = f"lacks {lost[0]} on every node"
        return reason

    def _send_missing(
        self, folder: Path, manifest: dict[str, Any], whole: Sequence[set[str] | None], field: str
    ) -> None:
        """Send the files of a checkpoint to the nodes that lack them.

        Args:
            whole: for each node, the undamaged files that it has; None if it lacks the checkpoint. A different one of
                the same name on that node is replaced.
        """
        mine = whole[self.nodes.here]
        anew = self.leads and mine is None
        place = folder if mine is not None else folder.with_name(f".{folder.name}.arriving")
        sent = [name for name in manifest["files"] if any(names is None or name not in names for names in whole)]
        if sent:
            log.info("sending %d file(s) of %s to nodes that lack them", len(sent), folder)
        try:
            self.collective(lambda: _make_folder(place) if anew else None)
            for name in sent:
                source = next(node for node, names in enumerate(whole) if names and name in names)
                lacks = mine is None or name not in mine
                self._send(source, place / name, manifest["files"][name], receives=lacks)
            self.collective(lambda: _put_in_place(place, folder, manifest) if anew else None)
        except AnyRankFailed as failure:
            if anew:
                shutil.rmtree(place, ignore_errors=True)
            fix = "free disk space on every node, or copy the files there by hand"
            raise UserError(Problem(field, f"cannot be completed on every node: {failure}", fix, str(folder))) from None

    def _send(self, source: int, path: Path, written: dict[str, Any], receives: bool) -> None:
        self.collective(lambda: send_file(self.nodes, source, path, written, receives))


def _not_finite(folder: Path) -> str | None:
    reason = not_finite(folder)
    return f"was saved with a fault: {reason}" if reason else None


def _held(folder: Path) -> Held:
    try:
        manifest = read_manifest(folder)
        if reason := other_format(manifest):
            return reason
        damages = {name: file_damage(folder, name, written) for name, written in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read: {error}"
    return manifest, {name for name, reason in damages.items() if reason is None}


def _make_folder(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _put_in_place(place: Path, folder: Path, manifest: dict[str, Any]) -> None:
    write_manifest(place, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(place, folder)
