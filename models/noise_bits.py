"""Dropout and random numbers that do not depend on which rank holds which part of a tensor.

Each element's number is a hash, of a key of its row and the index of its column. A row's key is already a hash of the
seed, the step, the module, the sample and the row's place in the sample. Dropout uses 16 bits per element, two elements
from one hash, so its probability is a multiple of 1/65536. The backward pass computes the mask again instead of storing
it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .noise_hash import FIRST, SECOND, index_keys, mix, place_keys

CHUNK = 2**17
"""Elements that are drawn at once on a CPU, so that intermediate results stay in its cache."""
LEVELS = 2**16


@dataclass(frozen=True)
class Columns:
    """The last axis of a tensor."""

    first: int = 0
    """Index of its first column in the whole tensor, of which a tensor rank may hold a part."""
    places: Tensor | None = None
    """Index of each column, [samples, 1 ..., columns], if samples differ in it; None counts from ``first``."""
    pairs: bool = True
    """Whether two neighbouring columns share a hash; false where ``places`` may be given, as they may have gaps."""


def dropout(values: Tensor, rows: Tensor, columns: Columns, share: float) -> Tensor:
    """``values`` with a share of the elements set to zero and the others divided by 1 - share; differentiable.

    Args:
        values: floating point, [..., columns].
        rows: int32 keys, of the shape of ``values`` without its last axis.
        share: probability that an element is dropped; rounded to 1/65536.
    """
    level = round(share * LEVELS)
    if level == 0:
        return values
    if level >= LEVELS:
        return values * 0
    if torch.compiler.is_compiling():
        kept = _kept(rows, columns, level, values.shape[-1])
        return values * kept.to(values.dtype) * (LEVELS / (LEVELS - level))
    return _Dropout.apply(values, rows, columns, level)  # type: ignore[return-value]


def uniform(rows: Tensor, columns: int) -> Tensor:
    """Numbers in (-1, 1), fp32, [*rows.shape, columns]: odd multiples of 2^-24, each as likely as any other."""
    keys = mix(rows.unsqueeze(-1) ^ index_keys(columns, 0, rows.device))
    positive = (keys >> 8) & 0xFFFFFF
    return (2 * positive + 1 - 2**24).float() * 2.0**-24


def chance(rows: Tensor) -> Tensor:
    """One number in (0, 1) for each key, fp32."""
    return (uniform(rows, 1).squeeze(-1) + 1) / 2


class _Dropout(torch.autograd.Function):
    """Multiplies by the mask, in the backward pass by the same mask drawn again."""

    @staticmethod
    def forward(ctx: object, values: Tensor, rows: Tensor, columns: Columns, level: int) -> Tensor:
        ctx.save_for_backward(rows)  # type: ignore[attr-defined]
        ctx.rest = columns, level  # type: ignore[attr-defined]
        return _dropped(values, rows, columns, level)

    @staticmethod
    @once_differentiable
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (rows,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return _dropped(gradient, rows, *ctx.rest), None, None, None  # type: ignore[attr-defined]


def _dropped(values: Tensor, rows: Tensor, columns: Columns, level: int) -> Tensor:
    if not columns.pairs:
        kept = _kept(rows, columns, level, values.shape[-1])
        return (values * kept.to(values.dtype)).mul_(LEVELS / (LEVELS - level))
    count = values.shape[-1]
    result = torch.empty_like(values, memory_format=torch.contiguous_format)
    flat, written, keys = values.reshape(-1, count), result.view(-1, count), rows.reshape(-1, 1)
    size = max(CHUNK // max(count, 1), 1) if values.device.type == "cpu" else max(len(flat), 1)
    first, last = columns.first // 2, (columns.first + count + 1) // 2
    of_pairs, skipped = index_keys(last - first, first, rows.device), columns.first % 2
    for start in range(0, len(flat), size):
        part, out = flat[start : start + size], written[start : start + size]
        drawn = _uniform_16_bits(keys[start : start + size], of_pairs)[:, skipped : skipped + count]
        kept = torch.ge(drawn, level - LEVELS // 2, out=torch.empty_like(out))
        torch.mul(part, kept, out=out)
        out.mul_(LEVELS / (LEVELS - level))
    return result  # not a view of it, which autograd would not let others change in place


def _uniform_16_bits(rows: Tensor, pairs: Tensor) -> Tensor:
    """Uniform 16-bit integers, [rows, 2 x pairs], by ``mix`` in place.

    The first step of ``mix`` is left out, because both keys are already mixed. torch's shift to the right repeats the
    sign bit. This only loses one of 32 bits before the last product.
    """
    values = rows ^ pairs
    values.mul_(FIRST)
    values.bitwise_xor_(values >> 15)
    values.mul_(SECOND)
    values.bitwise_xor_((values >> 16).bitwise_and_(0xFFFF))
    return values.view(torch.int16)


def _kept(rows: Tensor, columns: Columns, level: int, count: int) -> Tensor:
    """Which elements are kept, [*rows.shape, columns], in operations that a compiler can fuse."""
    if columns.pairs:
        first, last, skipped = columns.first // 2, (columns.first + count + 1) // 2, columns.first % 2
        pairs = index_keys(last - first, first, rows.device)
        values = (rows.unsqueeze(-1) ^ pairs) * FIRST
        values = (values ^ (values >> 15)) * SECOND
        values = values ^ ((values >> 16) & 0xFFFF)
        # The lower and the upper half of each hash, one after the other, as they lie in memory.
        halves = torch.stack(((values << 16) >> 16, values >> 16), dim=-1).flatten(-2)
        return halves[..., skipped : skipped + count] >= level - LEVELS // 2
    keys = index_keys(count, columns.first, rows.device) if columns.places is None else place_keys(columns.places)
    return (mix(rows.unsqueeze(-1) ^ keys) >> 16) >= level - LEVELS // 2
