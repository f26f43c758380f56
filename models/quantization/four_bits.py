"""4-bit quantisation of weights by bitsandbytes (NF4 and FP4), with one scale for each group of numbers.

A weight is flattened and cut into groups of 64 numbers, or as many as an option says. Double quantisation
(https://arxiv.org/abs/2305.14314, section 3) subtracts the mean of the scales and stores the rest as 8-bit numbers,
with one scale for every 256 of them. A number in groups of g takes ``4 + 32 / g`` bits, or ``4 + 8 / g + 32 / (256 g)``
bits with double quantisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .bitsandbytes_library import bitsandbytes
from .number_format import Format, Parts, Shape, bits, floats

OUTER = 256
"""Scales that share an outer scale."""


@dataclass(frozen=True)
class FourBits(Format):
    """Numbers of bitsandbytes' ``Linear4bit``."""

    kind: str
    """``nf4`` or ``fp4``."""
    group_size: int = 64
    double: bool = True

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        groups = -(-outputs * inputs // self.group_size)
        packed: dict[str, Shape] = {"packed": ((-(-outputs * inputs // 2),), torch.uint8)}
        if not self.double:
            return {**packed, "scales": ((groups,), torch.int32)}
        outer: Shape = ((-(-groups // OUTER),), torch.int32)
        return {**packed, "scales": ((groups,), torch.uint8), "outer_scales": outer, "offset": ((1,), torch.int32)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed, state = bitsandbytes().quantize_4bit(
            weight.contiguous(), blocksize=self.group_size, compress_statistics=self.double, quant_type=self.kind
        )
        if not self.double:
            return {"packed": packed.flatten(), "scales": bits(state.absmax)}
        outer, offset = bits(state.state2.absmax), bits(state.offset.reshape(1))
        return {"packed": packed.flatten(), "scales": state.absmax, "outer_scales": outer, "offset": offset}

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        state = self.state(parts, (outputs, inputs), dtype)
        return bitsandbytes().dequantize_4bit(parts["packed"].view(-1, 1), state)

    def state(self, parts: Parts, shape: tuple[int, int], dtype: torch.dtype) -> Any:
        """The ``QuantState`` of bitsandbytes for a quantised tensor."""
        quant_state = bitsandbytes().QuantState
        device = str(parts["packed"].device)
        outer = offset = None
        scales = parts["scales"] if self.double else floats(parts["scales"])
        if self.double:
            offset = floats(parts["offset"]).reshape(())
            outer = quant_state(
                floats(parts["outer_scales"]), code=scale_values(device), blocksize=OUTER, dtype=torch.float32
            )
        return quant_state(
            scales,
            shape=torch.Size(shape),
            code=values_of(self.kind, device),
            blocksize=self.group_size,
            quant_type=self.kind,
            dtype=dtype,
            offset=offset,
            state2=outer,
        )


@cache
def values_of(kind: str, device: str) -> Tensor:
    """The 16 values of a kind of 4-bit numbers [16]."""
    return bitsandbytes().get_4bit_type(kind, device=device)


@cache
def scale_values(device: str) -> Tensor:
    """The 256 values of the 8-bit numbers in which scales are kept [256]."""
    return bitsandbytes().create_dynamic_map().to(device)
