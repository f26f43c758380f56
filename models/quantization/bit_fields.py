"""Pack integers of 2 to 8 bits into 32-bit integers and unpack them, as GPTQ and AWQ store them."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32
"""Bits of the integers that hold others."""


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Codes [n, m] below 2**bits as a stream of bits along the first dimension, least first: int32 [n * bits / 32, m].

    n * bits must be a multiple of 32.
    """
    if WORD % bits == 0:
        each = WORD // bits
        return _signed((codes.to(torch.int64).view(-1, each, codes.shape[1]) << _steps(each, codes) * bits).sum(1))
    stream = (codes.to(torch.int64).unsqueeze(1) >> _steps(bits, codes)) & 1  # [n, bits, m]
    words = stream.reshape(-1, WORD, codes.shape[1])
    return _signed((words << _steps(WORD, codes)).sum(1))


def unpack_rows(words: Tensor, bits: int) -> Tensor:
    """The codes [n, m] of ``pack_rows``, in int32."""
    if WORD % bits == 0:
        each = (words.unsqueeze(1) >> _steps(WORD // bits, words).to(words.dtype) * bits) & (2**bits - 1)
        return each.reshape(-1, words.shape[1])
    stream = (words.to(torch.int64).unsqueeze(1) >> _steps(WORD, words)) & 1
    fields = stream.reshape(-1, bits, words.shape[1])
    return (fields << _steps(bits, words)).sum(1).to(torch.int32)


def _steps(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device).view(1, count, 1)


def _signed(words: Tensor) -> Tensor:
    """Integers below 2**32 as int32 of the same bits."""
    return torch.where(words >= 2 ** (WORD - 1), words - 2**WORD, words).to(torch.int32)
