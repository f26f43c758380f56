"""8-bit quantisation of weights by bitsandbytes (LLM.int8), with one scale per row of a weight.

A number takes ``8 + 32 / inputs`` bits, scale included. Without a threshold, weights are unpacked to the type of the
inputs and multiplied. With a threshold, the inputs are quantised row by row too, except for features that contain a
value above the threshold (https://arxiv.org/abs/2208.07339, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bitsandbytes_library import bitsandbytes
from .number_format import Format, Parts, Shape, bits, floats

LARGEST = 127
"""The largest of the integers."""


@dataclass(frozen=True)
class EightBits(Format):
    """Numbers of bitsandbytes' ``Linear8bitLt``."""

    threshold: float | None = None

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        return {"packed": ((outputs, inputs), torch.int8), "scales": ((outputs,), torch.int32)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        packed, scales, _ = bitsandbytes().int8_vectorwise_quant(weight.to(torch.float16))
        return {"packed": packed, "scales": bits(scales.float())}

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        scales = floats(parts["scales"]) / LARGEST
        return (parts["packed"].float() * scales.unsqueeze(1)).to(dtype)

    def product(self, inputs: Tensor, parts: Parts, sizes: tuple[int, int]) -> Tensor:
        if self.threshold is None:
            return super().product(inputs, parts, sizes)
        library = bitsandbytes("autograd._functions")
        state = library.MatmulLtState()
        state.CB, state.SCB = parts["packed"], floats(parts["scales"])
        state.has_fp16_weights, state.threshold, state.is_training = False, self.threshold, False
        flat = inputs.reshape(-1, inputs.shape[-1])
        result = library.MatMul8bitLt.apply(flat, parts["packed"], None, None, state)
        return result.view(*inputs.shape[:-1], sizes[0]).to(inputs.dtype)
