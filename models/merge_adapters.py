"""Merge adapters into the base model's weights, some rows at a time. The result is the same bit for bit, whether a
whole weight or only a part of its rows is merged.

A matrix product may round differently if it has another number of rows. The rows of a weight are therefore divided into
tiles whose size depends only on the weight. Every merge computes tile by tile, whether it holds the whole weight or
only a few tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .adapter_plan import AdapterPlan
from .low_rank import DOWN, MAGNITUDE, UP

TILE = 2**20
"""Most elements of a tile; a longer row is a tile of its own."""
Rows = Callable[[int, int], Tensor]
"""Rows ``start`` to ``stop`` (exclusive) of a weight."""


@dataclass(frozen=True)
class Delta:
    """The change of an adapter to one weight: a product that is added, a scale of its rows, or another weight in its
    place."""

    down: Tensor | None = None
    """[rank, inputs]"""
    up: Tensor | None = None
    """[outputs, rank]"""
    scale: float = 1.0
    magnitude: Tensor | None = None
    """Lengths of the rows of the sum [outputs] (DoRA)."""
    transposed: bool = False
    """Whether the weight is [inputs, outputs], as in GPT-2's ``Conv1D``."""
    instead: Rows | None = None
    """Rows of a weight that replaces the base's weight."""

    def product(self, start: int, stop: int) -> Tensor:
        """Rows of the product that is added, in the orientation of the weight."""
        assert self.down is not None and self.up is not None
        if self.transposed:
            return (self.down[:, start:stop].T @ self.up.T) * self.scale
        return (self.up[start:stop] @ self.down) * self.scale


def delta_of(
    path: str, plan: AdapterPlan, read: Callable[[str], Tensor], layer: nn.Module, weight: float = 1.0
) -> Delta:
    """The change of the adapter of the layer at ``path`` to the layer's weight.

    Args:
        read: gives a parameter of an adapter by its plain name, in fp32.
        weight: share of the adapter.
    """
    magnitude = read(f"{path}.{MAGNITUDE}") if plan.dora else None
    transposed = not isinstance(layer, nn.Linear)
    down, up = read(f"{path}.{DOWN}"), read(f"{path}.{UP}")
    return Delta(down, up, plan.scaling(path) * weight, magnitude, transposed)


def tiles(shape: torch.Size) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows of each tile of a weight."""
    rows, row = (shape[0], shape[1:].numel()) if shape else (1, 1)
    size = max(TILE // max(row, 1), 1)
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def merging(rows: Rows, shape: torch.Size, delta: Delta) -> Callable[[int, int, Tensor], Tensor]:
    """The function of (start, stop, rows of the weight) that gives these rows, a whole tile, merged and in fp32.

    Args:
        rows: for DoRA, all rows are read beforehand to compute the norms.
    """
    if delta.instead is not None:
        instead = delta.instead
        return lambda start, stop, tile: instead(start, stop).float()
    if delta.magnitude is None:
        return lambda start, stop, tile: tile.float() + delta.product(start, stop)
    factors = delta.magnitude / _norms(rows, shape, delta)

    def scaled(start: int, stop: int, tile: Tensor) -> Tensor:
        factor = factors.unsqueeze(0) if delta.transposed else factors[start:stop].unsqueeze(1)
        return factor * (tile.float() + delta.product(start, stop))

    return scaled


def merged_rows(rows: Rows, shape: torch.Size, delta: Delta) -> Rows:
    """Rows of a weight with an adapter merged into it, in fp32; they must be asked for by whole tiles."""
    merge = merging(rows, shape, delta)
    return lambda start, stop: merge(start, stop, rows(start, stop))


def merged_tensor(base: Tensor, delta: Delta) -> Tensor:
    """A whole weight with an adapter merged into it, in fp32."""
    rows = merged_rows(lambda start, stop: base[start:stop], base.shape, delta)
    return torch.cat([rows(start, stop) for start, stop in tiles(base.shape)])


def row_norms(base: Tensor, delta: Delta) -> Tensor:
    """Lengths of the rows of the sum of a weight and an adapter [outputs], as peft computes them for DoRA."""
    return _norms(lambda start, stop: base[start:stop], base.shape, delta)


def _norms(rows: Rows, shape: torch.Size, delta: Delta) -> Tensor:
    total = torch.zeros(shape[1]) if delta.transposed else None
    parts = []
    for start, stop in tiles(shape):
        squares = (rows(start, stop).float() + delta.product(start, stop)).square()
        if total is None:
            parts.append(squares.sum(1))
        else:
            total += squares.sum(0)
    return (torch.cat(parts) if total is None else total).sqrt()
