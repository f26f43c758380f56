"""Send a file to machines without a shared disk, in chunks of bounded size, and check its digest on arrival."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..layout import Digest, flush, manifest_entry
from .find_nodes import Nodes

PIECE_BYTES = 16 * 2**20


def send_file(nodes: Nodes, source: int, path: Path, written: dict[str, Any], receives: bool) -> None:
    """Send one file from the node ``source`` to others; a collective call of the first ranks of all nodes.

    Args:
        path: the file to send, or to write if ``receives``.
        written: size and digest of the file.
        receives: whether this node receives the file.

    Raises:
        OSError: the file could not be read or written here, or arrived with another digest.
    """
    if not nodes.leads:
        return
    sends, partial = nodes.here == source, path.with_name(f".{path.name}.arriving")
    digest = Digest()
    work = _Attempt()
    file = work(lambda: _open(partial if receives else path, receives)) if sends or receives else None
    buffer = torch.empty(min(PIECE_BYTES, written["bytes"]), dtype=torch.uint8)
    for start in range(0, written["bytes"], PIECE_BYTES):
        piece = buffer[: written["bytes"] - start]
        if sends and file is not None:
            work(lambda piece=piece: file.readinto(piece.numpy()))
        # Sent even after an error, because the other nodes wait for it; they see the error by the digest.
        dist.broadcast(piece, src=nodes.leader(source), group=nodes.group)
        if receives and file is not None:
            digest.update(piece.numpy().data)
            work(lambda piece=piece: file.write(piece.numpy()))
    if file is not None:
        work(file.close)
    if receives:
        work(lambda: _finish(partial, path, manifest_entry(written["bytes"], digest) == written))
    if work.error:
        raise work.error


class _Attempt:
    """Calls functions until one fails, and keeps the error."""

    error: OSError | None = None

    def __call__(self, function: Callable[[], Any]) -> Any:
        if self.error is None:
            try:
                return function()
            except OSError as error:
                self.error = error
        return None


def _open(path: Path, receives: bool) -> Any:
    if receives:
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb" if receives else "rb")


def _finish(partial: Path, path: Path, whole: bool) -> None:
    if not whole:
        partial.unlink()
        raise OSError(f"{path} was damaged on its way to this node")
    flush(partial)
    os.replace(partial, path)
