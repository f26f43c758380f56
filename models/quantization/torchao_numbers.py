"""Quantise weight matrices with torchao, and dequantise them: int8 and fp8 with one scale per row, int4 with one scale
per group of numbers in a row. Activations are not quantised.

torchao itself rounds the weights. A dequantised weight is the product of its integers (or 8-bit floats) and scales.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .number_format import Format, Parts, Shape, bits, floats


@dataclass(frozen=True)
class RowNumbers(Format):
    """8-bit integers, or 8-bit floats (e4m3), with a scale for each row: ``8 + 32 / inputs`` bits a number."""

    kind: str
    """``int8`` or ``fp8``."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers."""
        return torch.int8 if self.kind == "int8" else torch.float8_e4m3fn

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        return {"packed": ((outputs, inputs), torch.int8), "scales": ((outputs,), torch.int32)}

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        library = torchao("quantization")
        config = library.Int8WeightOnlyConfig() if self.kind == "int8" else _float8(library)
        holder = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta"))
        holder[0].weight = nn.Parameter(weight.clone(), requires_grad=False)
        library.quantize_(holder, config)
        packed: Any = holder[0].weight
        return {"packed": packed.qdata.contiguous().view(torch.int8), "scales": bits(packed.scale.float().flatten())}

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        numbers = parts["packed"].view(self.dtype).float()
        return (numbers * floats(parts["scales"]).unsqueeze(1)).to(dtype)


@dataclass(frozen=True)
class GroupIntegers(Format):
    """4-bit integers from -8 to 7 with a scale for each group of inputs: ``4 + 32 / g`` bits a number for groups of g.

    These are the numbers that ``model.qat=int4`` trains for.
    """

    group_size: int = 32

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        scales: Shape = ((outputs, inputs // self.group_size), torch.int32)
        return {"packed": ((outputs, inputs // 2), torch.uint8), "scales": scales}

    def flaw(self, outputs: int, inputs: int) -> str:
        return f"{inputs} inputs are no multiple of {self.group_size}" if inputs % self.group_size else ""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        library = torchao("quantization.quant_primitives")
        block, limits = (1, self.group_size), (torch.int8, -8, 7)
        kinds = {"scale_dtype": torch.float32, "zero_point_dtype": torch.int32}
        scales, zeros = library.choose_qparams_affine(weight, library.MappingType.SYMMETRIC, block, *limits, **kinds)
        codes = library.quantize_affine(weight, block, scales, zeros, *limits) & 15
        return {"packed": (codes[:, ::2] | codes[:, 1::2] << 4).view(torch.uint8), "scales": bits(scales)}

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        pairs = parts["packed"]
        codes = torch.stack([pairs & 15, pairs >> 4], 2).view(outputs, -1, self.group_size).to(torch.int8)
        signed = torch.where(codes > 7, codes - 16, codes).float()
        return (signed * floats(parts["scales"]).unsqueeze(2)).view(outputs, inputs).to(dtype)


def torchao(module: str) -> Any:
    """A module of torchao."""
    return importlib.import_module(f"torchao.{module}")


def _float8(library: Any) -> Any:
    return library.Float8WeightOnlyConfig(granularity=library.PerRow())
