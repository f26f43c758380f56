"""The checkpoints of a run on all nodes: folders are made and renamed once on each, and each gets what it lacks.

Where all ranks see one run folder there is one node, and nothing is sent. Where machines have no common disk, a node
keeps the shards of its own ranks and everything that is not a shard. To be loaded, a checkpoint is completed on every
node first: then any plan on any ranks can read it.
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
from ..layout import fault, not_finite, other_format, read_manifest, verify, write_manifest
from .find_nodes import Nodes
from .send_file import send_file

log = logging.getLogger("trireme.checkpoint")
T = TypeVar("T")
Held = tuple[dict[str, Any], set[str]] | str
"""A node's manifest of a checkpoint and the files of it that are whole there; or why it has none."""


class NodeFiles:
    """What is done with files on all nodes; every method is a collective call but for ``holders``."""

    def __init__(self, collective: Collective, nodes: Nodes) -> None:
        self.collective, self.nodes = collective, nodes

    @property
    def leads(self) -> bool:
        """Whether this rank makes, renames and removes folders on its node."""
        return self.nodes.leads

    def on_each(self, function: Callable[[], T]) -> list[T]:
        """Run ``function`` on the first rank of every node; what it gave, by node. Raises as ``Collective`` does."""
        results: list[Any] = self.collective(lambda: function() if self.leads else None)
        return [results[self.nodes.leader(node)] for node in range(self.nodes.count)]

    def distribute(self, folder: Path, files: dict[str, Any]) -> None:
        """Send files that the first node has written, described as in a manifest, to the other nodes.

        Raises:
            AnyRankFailed: a node could not read or write.
        """
        if self.nodes.count > 1:
            for name, written in files.items():
                self._send(0, folder / name, written, receives=self.nodes.here > 0)

    def holders(self, parts: Iterable[Iterable[str]]) -> dict[str, int]:
        """The node of each file that one node alone holds; empty where there is one node.

        Args:
            parts: names of the files that each rank has written.
        """
        if self.nodes.count == 1:
            return {}
        return {name: node for node, part in zip(self.nodes.of_rank, parts, strict=True) for name in part}

    def complete(self, folder: Path, field: str) -> str | None:
        """Verify a checkpoint, of which every file counts that some node holds, and send what other nodes lack of it.

        Returns:
            Why it cannot be used; None when it can, and then every node holds it.

        Raises:
            UserError: a node has no room for what it lacks; ``field`` is what the user gave.
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
        """Args:
        whole: for each node, the files it holds; None where it has no such checkpoint (another of the same name makes
            way for it).
        """
        mine = whole[self.nodes.here]
        anew = self.leads and mine is None
        place = folder if mine is not None else folder.with_name(f".{folder.name}.arriving")
        sent = [name for name in manifest["files"] if any(names is None or name not in names for names in whole)]
        if sent:
            log.info("sending %d file(s) of %s to nodes that lack them", len(sent), folder)
        try:
            self.collective(lambda: _make_room(place) if anew else None)
            for name in sent:
                source = next(node for node, names in enumerate(whole) if names and name in names)
                lacks = mine is None or name not in mine
                self._send(source, place / name, manifest["files"][name], receives=lacks)
            self.collective(lambda: _put_in_place(place, folder, manifest) if anew else None)
        except AnyRankFailed as failure:
            if anew:
                shutil.rmtree(place, ignore_errors=True)
            fix = "make room on every node, or copy the files there by hand"
            raise UserError(Problem(field, f"cannot be completed on every node: {failure}", fix, str(folder))) from None

    def _send(self, source: int, path: Path, written: dict[str, Any], receives: bool) -> None:
        self.collective(lambda: send_file(self.nodes, source, path, written, receives))


def _not_finite(folder: Path) -> str | None:
    reason = not_finite(folder)
    return f"was saved when {reason}" if reason else None


def _held(folder: Path) -> Held:
    try:
        manifest = read_manifest(folder)
        if reason := other_format(manifest):
            return reason
        faults = {name: fault(folder, name, written) for name, written in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read: {error}"
    return manifest, {name for name, reason in faults.items() if reason is None}


def _make_room(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _put_in_place(place: Path, folder: Path, manifest: dict[str, Any]) -> None:
    write_manifest(place, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(place, folder)
