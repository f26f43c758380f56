"""ZeRO's flat shards are turned into whole rows of the original tensors, saved as a checkpoint, and read back."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from torch import Tensor
from trireme.parallel.mesh import build_mesh
from trireme.parallel.plan import Plan
from trireme.parallel.tensor_rows import Rows, rows_of
from trireme.parallel.zero.row_pieces import Piece, whole_rows
from trireme.trainer.checkpoint.load.block_reader import StoredShards
from trireme.trainer.checkpoint.load.read_tensors import read_tensors
from trireme.trainer.checkpoint.save.write_tensors import write_tensors

RANKS = 3
SHAPES = [(7,), (1,), (1, 9), (2, 11), (5, 3), (4, 1), (3, 2, 5), (64, 1, 2), (2, 1, 1, 6)]


def _cases(seed: int) -> list[tuple[str, torch.Size, list[tuple[int, int]], Tensor]]:
    """(name, shape, ranges of the ranks, whole tensor): even parts as of stage 3, and cuts anywhere as of 1 and 2."""
    draw = random.Random(seed)
    cases = []
    for number, shape in enumerate(map(torch.Size, SHAPES)):
        size, even = shape.numel(), -(-shape.numel() // RANKS)
        cuts = [min(even * rank, size) for rank in range(RANKS + 1)]
        if seed:
            cuts = [0, *sorted(draw.choices(range(size + 1), k=RANKS - 1)), size]
        ranges = list(pairwise(cuts))
        kind = torch.bfloat16 if number % 4 == 3 else torch.float32
        cases.append((f"t{number}", shape, ranges, (torch.arange(size) + 100 * number).to(kind).view(shape)))
    return cases


def _written(seed: int, folder: Path) -> bool:
    """Whether the rows of all cases are read from a checkpoint as they were written."""
    mesh, cases = build_mesh(Plan(replicate="auto")), _cases(seed)
    rank = mesh.rank
    pieces = [Piece(n, shape, ranges, whole.flatten()[slice(*ranges[rank])]) for n, shape, ranges, whole in cases]
    tensors = {}
    for piece, first, values, live in whole_rows(pieces, rank, torch.device("cpu")):
        shared = values.untyped_storage().data_ptr() == piece.values.untyped_storage().data_ptr()
        assert live == shared
        tensors[piece.name] = rows_of(values, first, piece.shape)
        assert isinstance(tensors[piece.name], Rows) == (values.shape != piece.shape)
    write_tensors(tensors, folder, distributed=True)
    mesh.barrier()
    found = {name: torch.full(shape, -1.0) for name, shape, _, _ in cases}
    read_tensors(found, folder, distributed=False)
    stored = StoredShards(folder)
    mesh.close()
    same = all(torch.equal(found[name], whole.float()) for name, _, _, whole in cases)
    shapes = {name: shape for name, (shape, _) in stored.shapes.items()}
    return same and shapes == {name: shape for name, shape, _, _ in cases}


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_written_once_and_read_again(seed: int, tmp_path: Path) -> None:
    assert all(kept_ranks(_written, RANKS, seed, tmp_path))


def _messages() -> tuple[list[int], int]:
    """For a matrix with a row cut at every border between ranks: elements of its rows, and those that it sends."""
    mesh, shape = build_mesh(Plan(replicate="auto")), torch.Size((100, 7))
    rank = mesh.rank
    cuts = [0, 233, 466, 700]
    ranges = list(pairwise(cuts))
    piece = Piece("t", shape, ranges, torch.arange(700.0)[slice(*ranges[rank])])
    rows = [values.numel() for _, _, values, _ in whole_rows([piece], rank, torch.device("cpu"))]
    mesh.close()
    return rows, piece.head(rank)


def test_only_the_rest_of_a_row_is_sent() -> None:
    results = kept_ranks(_messages, RANKS)
    assert [rows for rows, _ in results] == [[34 * 7], [33 * 7], [33 * 7]]
    assert [head for _, head in results] == [0, 5, 3]
