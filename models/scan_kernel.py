"""Triton kernels that compute the linear recurrence ``h_t = x_t + a_t h_(t-1)`` and its gradient on a GPU.

``linear_recurrence.py`` calls them. Each program of a kernel runs through all positions, for some features of one
sample, so each number is read and written once. All tensors are fp32 [batch, length, features].
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

FEATURES = 64
"""Features that one program of a kernel computes."""


@triton.jit
def _forward(a, h, length, features, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    place = tl.program_id(0).to(tl.int64) * length * features + columns
    state = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(length):
        state = tl.load(a + place, mask=inside, other=0.0) * state + tl.load(h + place, mask=inside, other=0.0)
        tl.store(h + place, state, mask=inside)
        place += features


@triton.jit
def _backward(a, g, length, features, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < features
    place = (tl.program_id(0).to(tl.int64) * length + length - 1) * features + columns
    carried = tl.zeros([BLOCK], dtype=tl.float32)
    for _ in range(length):
        found = tl.load(g + place, mask=inside, other=0.0) + carried
        tl.store(g + place, found, mask=inside)
        carried = tl.load(a + place, mask=inside, other=0.0) * found
        place -= features


def scan_on_gpu_(a: Tensor, h: Tensor) -> None:
    """``scan_``: ``h_t += a_t h_(t-1)``, in place."""
    _run(_forward, a, h)


def scan_back_on_gpu_(a: Tensor, g: Tensor) -> None:
    """``scan_back_``: ``g_t += a_(t+1) g_(t+1)``, in place."""
    _run(_backward, a, g)


def _run(kernel: triton.JITFunction, a: Tensor, values: Tensor) -> None:
    batch, length, features = values.shape
    assert values.is_contiguous() and values.dtype == a.dtype == torch.float32
    kernel[(batch, triton.cdiv(features, FEATURES))](a.contiguous(), values, length, features, BLOCK=FEATURES)
