"""``Format``, the base class of quantisation formats: it converts a linear layer's weight to integer tensors and back.

All tensors are integers; even scales are stored by their bits in an integer tensor. FSDP and ZeRO cast floating-point
parameters to the compute type, but leave integers unchanged. They can therefore shard and gather these tensors without
changing them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

INTEGERS = {torch.float32: torch.int32, torch.float16: torch.uint8, torch.bfloat16: torch.uint8}
"""Type that holds the bits of a floating-point type; two bytes for one of 16 bits, since neither gloo nor NCCL sends
integers of 16 bits."""
Parts = Mapping[str, Tensor]
"""The tensors of one layer, by name."""
Shape = tuple[tuple[int, ...], torch.dtype]


class Format(ABC):
    """A number format. Instances are equal if they give equal numbers, and are never changed."""

    @abstractmethod
    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        """Shape and type of each part of a layer."""

    @abstractmethod
    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight [outputs, inputs] in fp32."""

    @abstractmethod
    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        """The weight [outputs, inputs] that the parts store."""

    def flaw(self, outputs: int, inputs: int) -> str:
        """Why a layer of this size cannot be stored in this format; empty if it can."""
        return ""

    def product(self, inputs: Tensor, parts: Parts, sizes: tuple[int, int]) -> Tensor:
        """``inputs`` [..., inputs] times the transposed weight, in the type of ``inputs``."""
        return Product.apply(inputs, self, sizes, tuple(parts), *parts.values())  # type: ignore[return-value]

    def nbytes(self, outputs: int, inputs: int) -> int:
        """Bytes of a layer's parts."""
        return sum(prod(shape) * dtype.itemsize for shape, dtype in self.parts(outputs, inputs).values())


class Product(torch.autograd.Function):
    """A matrix product with a frozen weight, which is unpacked for the forward and again for the backward pass.

    Nothing but the parts is kept between the two. Engines that free gathered parameters after the forward pass gather
    the same tensors again before the backward pass.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, form: Format, sizes: tuple[int, int], names: tuple[str, ...], *parts: Tensor):
        ctx.save_for_backward(*parts)
        ctx.form, ctx.sizes, ctx.names = form, sizes, names
        return F.linear(inputs, form.unpack(dict(zip(names, parts, strict=True)), *sizes, inputs.dtype))

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor):
        (gradient,) = grad_outputs
        parts = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        weight = ctx.form.unpack(parts, *ctx.sizes, gradient.dtype)
        return gradient @ weight, None, None, None, *(None for _ in parts)


def bits(numbers: Tensor) -> Tensor:
    """Floating-point numbers as integers of the same bits; the last dimension of 16-bit ones is doubled."""
    return numbers.contiguous().view(INTEGERS[numbers.dtype])


def shape_of_bits(shape: tuple[int, ...], dtype: torch.dtype) -> Shape:
    """Shape and type of the integers that ``bits`` makes of numbers of this shape and type."""
    kind = INTEGERS[dtype]
    return (*shape[:-1], shape[-1] * dtype.itemsize // kind.itemsize), kind


def floats(integers: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that ``bits`` was given."""
    return integers.view(dtype)
