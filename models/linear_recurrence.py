"""Linear recurrences ``h_t = a_t h_(t-1) + x_t`` over a sequence, in time and memory linear in its length.

transformers computes RecurrentGemma's recurrence in a Python loop that writes each state into one tensor. Autograd
copies this tensor at every position, so the backward pass takes quadratic time. Here the forward and the backward pass
are one scan each. The gradient of the states is a recurrence too, from the last position to the first:
``d_t = g_t + a_(t+1) d_(t+1)``. The gradient of x_t is d_t, and the gradient of a_t is d_t h_(t-1) (Griffin,
https://arxiv.org/abs/2402.19427, appendix A).

States are computed in fp32 for any type of a and x. Wide states are computed position by position, which keeps them in
the cache of a CPU core. Narrow states, and all states on a GPU without Triton, are computed in chunks: all chunks of
the sequence are scanned at once, and then the state at the end of each chunk is carried into the next chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

PIECE = 64
"""Positions of a chunk."""
WIDE = 2048
"""Features of all samples together from which states are wide: one position is then enough work for a core."""


def linear_scan(gates: Tensor, inputs: Tensor, first: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All states of the recurrence, in the type of ``inputs``, and the last one in fp32.

    Args:
        gates: a [batch, length, features]; a zero forgets all that was before.
        inputs: x [batch, length, features].
        first: the state before the first position [batch, features]; None for zeros.
    """
    return _untraced(gates, inputs, first)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, inputs: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        a, states = gates.float(), inputs.to(torch.float32, copy=True).contiguous()
        if first is not None:
            states[:, 0].addcmul_(a[:, 0], first.float())
        scan_(a, states)
        ctx.types = gates.dtype, inputs.dtype, None if first is None else first.dtype
        ctx.save_for_backward(gates, states, first)
        output = states.to(inputs.dtype)
        return output.clone() if output is states else output, states[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gradient, last = grad_outputs
        gates, states, first = ctx.saved_tensors
        of_gates, of_inputs, of_first = ctx.types
        a, found = gates.float(), gradient.to(torch.float32, copy=True).contiguous()
        found[:, -1].add_(last)
        scan_back_(a, found)
        slopes = torch.empty_like(found)
        torch.mul(found[:, 1:], states[:, :-1], out=slopes[:, 1:])
        if first is None:
            slopes[:, 0] = 0
        else:
            torch.mul(found[:, 0], first.float(), out=slopes[:, 0])
        before = None if of_first is None or first is None else (found[:, 0] * a[:, 0]).to(of_first)
        return slopes.to(of_gates), found.to(of_inputs), before


_untraced: Any = torch.compiler.disable(_Scan.apply)
"""A compiler would unroll the loop over positions."""


def scan_(a: Tensor, h: Tensor) -> None:
    """Turn inputs ``h`` into states, in place: ``h_t += a_t h_(t-1)``; all fp32 [batch, length, features]."""
    if h.is_cuda and _has_triton():
        from .scan_kernel import scan_on_gpu_

        scan_on_gpu_(a, h)
    elif _one_by_one(h):
        gates, states = a.unbind(1), h.unbind(1)
        for t in range(1, len(states)):
            states[t].addcmul_(gates[t], states[t - 1])
    else:
        _by_pieces_(a, h)


def scan_back_(a: Tensor, g: Tensor) -> None:
    """Turn gradients ``g`` of states into those of inputs, in place: ``g_t += a_(t+1) g_(t+1)``."""
    if g.is_cuda and _has_triton():
        from .scan_kernel import scan_back_on_gpu_

        scan_back_on_gpu_(a, g)
    elif _one_by_one(g):
        gates, found = a.unbind(1), g.unbind(1)
        for t in range(len(found) - 2, -1, -1):
            found[t].addcmul_(gates[t + 1], found[t + 1])
    else:
        backwards = g.flip(1)
        gates = torch.cat([torch.zeros_like(a[:, :1]), a[:, 1:].flip(1)], 1)
        _by_pieces_(gates, backwards)
        g.copy_(backwards.flip(1))


def _by_pieces_(a: Tensor, h: Tensor) -> None:
    """``scan_`` of all chunks at once."""
    batch, length, features = h.shape
    count = length // PIECE
    whole = count * PIECE
    gates = a[:, :whole].reshape(batch, count, PIECE, features)
    states = h[:, :whole].reshape(batch, count, PIECE, features)
    decay = gates.clone()  # the share of the state before its chunk that is left at each position
    for t in range(1, PIECE):
        states[:, :, t].addcmul_(gates[:, :, t], states[:, :, t - 1])
        decay[:, :, t].mul_(decay[:, :, t - 1])
    for piece in range(1, count):
        states[:, piece].addcmul_(decay[:, piece], states[:, piece - 1, -1:].clone())
    if states.data_ptr() != h.data_ptr():
        h[:, :whole] = states.view(batch, whole, features)
    for t in range(max(whole, 1), length):
        h[:, t].addcmul_(a[:, t], h[:, t - 1])


def _one_by_one(h: Tensor) -> bool:
    return not h.is_cuda and h.shape[0] * h.shape[2] >= WIDE


def _has_triton() -> bool:
    from importlib.util import find_spec

    return find_spec("triton") is not None
