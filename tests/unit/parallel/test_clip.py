"""Tests of the sum of squares from which the norm of the gradient is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trireme.parallel.clip import CACHED, sum_of_squares


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_squares_are_summed_in_float64(kind: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(), (7,), (0, 3), (CACHED,), (3, CACHED // 2 + 1), (5, 4, 3)]
    tensors = [(1000 * torch.randn(shape, generator=draw)).to(kind) for shape in shapes]
    tensors.append(torch.randn(8, 6, generator=draw).to(kind).T)  # not contiguous
    wanted = sum(np.square(tensor.double().numpy()).sum() for tensor in tensors)
    found = sum_of_squares(tensors, torch.float64)
    assert found.dtype is torch.float64 and found.item() == pytest.approx(wanted, rel=1e-13)
    assert sum_of_squares(tensors, torch.float32).item() == pytest.approx(wanted, rel=1e-4)


def test_a_square_that_is_not_finite_is_kept() -> None:
    for value in (float("nan"), float("inf")):
        tensors = [torch.ones(3), torch.tensor([1.0, value])]
        assert not sum_of_squares(tensors, torch.float64).isfinite()
