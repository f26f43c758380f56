"""Turn a ZeRO rank's flat ranges of tensors into whole rows, which a checkpoint can store without a gather.

A rank of ZeRO holds a range of a flattened tensor, which may begin and end in the middle of a row (one index of the
first dimension). Distributed checkpoints can store only rectangular shards. So each row goes to the rank that holds its
first element, and only the rest of a row that is split between ranks is sent there. Each rank then writes its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Range = tuple[int, int]
"""(first element, end) in a flattened tensor; equal where a rank holds none of it."""


@dataclass(frozen=True)
class Piece:
    """One rank's range of one tensor."""

    name: str
    shape: torch.Size
    """Shape of the whole tensor, which has at least one dimension and one element."""
    ranges: Sequence[Range]
    """The ranges of all ranks, which together are the whole tensor."""
    values: Tensor
    """This rank's elements, flat."""

    @property
    def row(self) -> int:
        """Elements of a row."""
        return self.shape.numel() // self.shape[0]

    def rows(self, rank: int) -> Range:
        """(first row, end) of the rows whose first element ``rank`` holds."""
        begin, end = self.ranges[rank]
        return -(-begin // self.row), -(-end // self.row)

    def head(self, rank: int) -> int:
        """Elements at the beginning of a rank's range that belong to a row of another rank."""
        begin, end = self.ranges[rank]
        return max(0, min(end, self.rows(rank)[0] * self.row) - begin)

    def owner(self, element: int) -> int:
        """The rank that gets the row of an element: the one with its first element."""
        start = element - element % self.row
        return next(rank for rank, (begin, end) in enumerate(self.ranges) if begin <= start < end)

    def followers(self, rank: int) -> list[int]:
        """Ranks whose heads belong to the last row of ``rank``, in the order of their elements."""
        first, last = self.rows(rank)
        end = self.ranges[rank][1]
        rest = range(end, last * self.row) if first < last else range(0)
        found = sorted((begin, other) for other, (begin, stop) in enumerate(self.ranges) if begin < stop)
        return [other for begin, other in found if begin in rest]


def whole_rows(pieces: Sequence[Piece], rank: int, device: torch.device) -> Iterator[tuple[Piece, int, Tensor, bool]]:
    """This rank's rows in fp32, for each piece of which it has rows: (piece, first row, rows, whether these are a view
    of the piece instead of a copy on the CPU).

    A collective call over all ranks, which have the same pieces in the same order.

    Args:
        device: device of the messages between ranks.
    """
    received = _exchange([piece for piece in pieces if piece.row > 1], rank, device)
    for piece in pieces:
        first, last = piece.rows(rank)
        if first == last:
            continue
        begin, end = piece.ranges[rank]
        own = piece.values[first * piece.row - begin : min(end, last * piece.row) - begin]
        rest = received.get(piece.name, [])
        live = not rest and own.dtype == torch.float32
        values = own if live else torch.cat([part.cpu().float() for part in (own, *rest)])
        yield piece, first, values.view(last - first, *piece.shape[1:]), live


def _exchange(pieces: Sequence[Piece], rank: int, device: torch.device) -> dict[str, list[Tensor]]:
    """Receive from other ranks, by tensor name and in order, the missing ends of this rank's rows. A rank sends another
    one message at most."""
    outgoing: dict[int, list[Tensor]] = {}
    incoming: dict[int, list[tuple[Piece, int]]] = {}
    for piece in pieces:
        for other in piece.followers(rank):
            incoming.setdefault(other, []).append((piece, piece.head(other)))
        if head := piece.head(rank):
            outgoing.setdefault(piece.owner(piece.ranges[rank][0]), []).append(piece.values[:head])
    operations, buffers = [], {}
    for other, parts in outgoing.items():
        operations.append(dist.P2POp(dist.isend, torch.cat([part.to(device, torch.float32) for part in parts]), other))
    for other, parts in incoming.items():
        buffers[other] = torch.empty(sum(size for _, size in parts), dtype=torch.float32, device=device)
        operations.append(dist.P2POp(dist.irecv, buffers[other], other))
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()
    received: dict[str, dict[int, Tensor]] = {}
    for other, parts in incoming.items():
        for (piece, _), part in zip(parts, buffers[other].split([size for _, size in parts]), strict=True):
            received.setdefault(piece.name, {})[piece.ranges[other][0]] = part
    return {name: [parts[begin] for begin in sorted(parts)] for name, parts in received.items()}
