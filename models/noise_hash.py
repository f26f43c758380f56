"""Hash functions that give the random numbers for dropout and other noise. Each 32-bit number is computed by tensor
operations from a key (such as a seed, a step and an index) and not from a random generator's state, so the same key
gives the same number on every rank and device.

Every number is a function of its key alone. Such a generator is called counter-based (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011). Only integer operations are used, so a CPU and a GPU give identical bits. The
mixing function is ``lowbias32`` of Wellons' hash prospector (https://github.com/skeeto/hash-prospector).
"""

from __future__ import annotations

import functools
import hashlib

import torch
from torch import Tensor

FIRST, SECOND = 0x7FEB352D, 0x846CA68B - 2**32
"""Odd multipliers of ``lowbias32``; the second one as a signed number, since torch shifts signed integers only."""
GOLDEN = 0x9E3779B9
"""Distance of the keys of consecutive indices (2^32 divided by the golden ratio)."""


def signed(value: int) -> int:
    """The lowest 32 bits of ``value`` as a signed number."""
    return (value + 2**31) % 2**32 - 2**31


def text_key(*parts: object) -> int:
    """A signed 32-bit key made from ``parts``, such as the seed and a step, or the name of a module."""
    text = "/".join(map(str, parts)).encode()
    return signed(int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little"))


def mix(values: Tensor) -> Tensor:
    """A permutation of 32-bit integers (int32, any shape) that changes half of the bits for each bit changed."""
    values = values ^ _shifted(values, 16)
    values = values * FIRST
    values = values ^ _shifted(values, 15)
    values = values * SECOND
    return values ^ _shifted(values, 16)


def number_keys(numbers: Tensor, first: int, second: int) -> tuple[Tensor, Tensor]:
    """Two independent 32-bit keys of 64-bit numbers (int64, any shape), each under a key of its own."""
    low, high = numbers.to(torch.int32), (numbers >> 32).to(torch.int32)  # a cast to fewer bits keeps the lowest ones
    return mix(mix(low ^ first) ^ high), mix(mix(low ^ second) + high)


def index_keys(count: int, first: int, device: torch.device) -> Tensor:
    """Keys [count] of the indices ``first``, ``first`` + 1 ... along an axis."""
    if torch.compiler.is_compiling():  # the compiled graph computes them inside of the kernel that uses them
        return _index_keys(count, first, device)
    return _kept_index_keys(count, first, device)


def place_keys(places: Tensor) -> Tensor:
    """Keys of indices in a tensor (integers, any shape); those of ``index_keys`` for the same indices."""
    return mix(places.to(torch.int32) * signed(GOLDEN) + FIRST)


def _index_keys(count: int, first: int, device: torch.device) -> Tensor:
    return place_keys(torch.arange(first, first + count, dtype=torch.int32, device=device))


_kept_index_keys = functools.lru_cache(256)(_index_keys)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A shift to the right that fills with zeros, since torch repeats the sign."""
    return (values >> bits) & ((1 << (32 - bits)) - 1)
