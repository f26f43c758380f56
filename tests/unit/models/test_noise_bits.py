"""Tests of the counter-based random generator: known values, uniform bits, and independent rows and columns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from trireme.models import noise_bits
from trireme.models.noise_bits import Columns, chance, dropout, uniform
from trireme.models.noise_hash import index_keys, mix, number_keys, place_keys, signed, text_key

ROWS, COLUMNS, WHOLE = 512, 768, Columns()


@pytest.fixture(scope="module")
def rows() -> Tensor:
    return mix(torch.arange(ROWS, dtype=torch.int32))


def _kept(rows: Tensor, columns: Columns = WHOLE, share: float = 0.1, count: int = COLUMNS) -> Tensor:
    return dropout(torch.ones(*rows.shape, count), rows, columns, share) != 0


def test_mix_is_lowbias32() -> None:
    """In Python's integers, as its author writes it."""

    def written(value: int) -> int:
        value ^= value >> 16
        value = value * 0x7FEB352D % 2**32
        value ^= value >> 15
        value = value * 0x846CA68B % 2**32
        return value ^ value >> 16

    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, *(pow(7, power, 2**32) for power in range(1, 50))]
    found = mix(torch.tensor([signed(value) for value in values], dtype=torch.int32))
    assert found.tolist() == [signed(written(value)) for value in values]


def test_keys_depend_on_all_64_bits() -> None:
    numbers = torch.tensor([0, 1, 2**31, 2**32, 2**40 + 1, 2**62, -1])
    for keys in number_keys(numbers, 3, 4):
        assert len(set(keys.tolist())) == len(numbers)
    assert torch.equal(index_keys(5, 3, torch.device("cpu")), place_keys(torch.arange(3, 8)))
    assert text_key(1, 23) != text_key(12, 3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_and_the_mean_are_kept(rows: Tensor, share: float) -> None:
    values = dropout(torch.ones(ROWS, COLUMNS), rows, Columns(), share)
    kept, error = (values != 0).float(), 4 * math.sqrt(share * (1 - share) / values.numel())
    assert float(kept.mean()) == pytest.approx(1 - share, abs=error)
    assert float(values.mean()) == pytest.approx(1.0, abs=error / (1 - share))
    assert float(kept.mean(0).std()) == pytest.approx(math.sqrt(share * (1 - share) / ROWS), rel=0.15)
    assert float(kept.mean(1).std()) == pytest.approx(math.sqrt(share * (1 - share) / COLUMNS), rel=0.15)


def test_rows_columns_and_neighbours_are_independent(rows: Tensor) -> None:
    signs = torch.where(_kept(rows, share=0.5), 1.0, -1.0)
    between_rows = (signs @ signs.T / COLUMNS).fill_diagonal_(0)
    between_columns = (signs.T @ signs / ROWS).fill_diagonal_(0)
    assert float(between_rows.abs().max()) < 6 / math.sqrt(COLUMNS)
    assert float(between_columns.abs().max()) < 6 / math.sqrt(ROWS)
    # Keys of rows and columns are combined by an exclusive or, which must not correlate the corners of a rectangle.
    corners = signs[:-1, :-1] * signs[1:, :-1] * signs[:-1, 1:] * signs[1:, 1:]
    assert abs(float(corners.mean())) < 5 / math.sqrt(corners.numel())


def test_a_part_of_the_columns_draws_what_it_draws_in_the_whole(rows: Tensor) -> None:
    whole = _kept(rows)
    assert torch.equal(_kept(rows, Columns(first=256), count=256), whole[:, 256:512])
    assert torch.equal(_kept(rows, Columns(first=5), count=6), whole[:, 5:11])
    single = _kept(rows, Columns(pairs=False))
    assert torch.equal(_kept(rows, Columns(first=7, pairs=False), count=9), single[:, 7:16])
    places = torch.tensor([[3, 1, 4, 1, 5]]).expand(ROWS, 5)
    assert torch.equal(_kept(rows, Columns(places=places, pairs=False), count=5), single[:, [3, 1, 4, 1, 5]])


def test_chunks_and_the_compilable_form_give_the_same_bits(rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _kept(rows)
    assert torch.equal(noise_bits._kept(rows, Columns(), round(0.1 * 2**16), COLUMNS), whole)
    assert torch.equal(noise_bits._kept(rows, Columns(5), round(0.1 * 2**16), 11), whole[:, 5:16])
    monkeypatch.setattr(noise_bits, "CHUNK", 1000)
    assert torch.equal(_kept(rows), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_passes_where_the_value_did(rows: Tensor, dtype: torch.dtype) -> None:
    values = torch.randn(4, ROWS // 4, 6, dtype=dtype).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    result = dropout(values, rows.view(4, -1), Columns(), 0.3)
    result.backward(torch.full_like(result, 2))
    assert result.dtype == dtype and values.grad is not None
    factor = 65536 / (65536 - round(0.3 * 65536))
    expected = torch.where(result != 0, torch.tensor(2 * factor, dtype=dtype), 0)
    torch.testing.assert_close(values.grad, expected)
    changed = dropout(values, rows.view(4, -1), Columns(), 0.3)
    changed[0] = 0  # as wav2vec 2.0 does at padding
    changed.sum().backward()
    assert dropout(values, rows.view(4, -1), Columns(), 0.0) is values
    assert not dropout(values, rows.view(4, -1), Columns(), 1.0).any()


def test_uniform_numbers_are_uniform(rows: Tensor) -> None:
    found = uniform(rows, COLUMNS).flatten().sort().values
    expected = torch.linspace(-1, 1, len(found))
    assert float((found - expected).abs().max()) / 2 < 1.95 / math.sqrt(len(found))  # Kolmogorov-Smirnov, 0.1 %
    assert float(found[0]) > -1 and float(found[-1]) < 1
    assert 0 < float(chance(rows).min()) < 0.02 and 0.98 < float(chance(rows).max()) < 1
