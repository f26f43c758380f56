"""Pack and unpack weights in the format of GPTQ folders: integers with a scale and a zero point per group of inputs.

``weight[o, i] = scales[g[i], o] * (codes[i, o] - zeros[g[i], o])`` for output o and input i, where ``g[i]`` is the
group of input i (https://arxiv.org/abs/2210.17323). The files are those of AutoGPTQ and GPTQModel. The first version of
the format stores each zero point minus one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bit_fields import WORD, pack_rows, unpack_rows
from .number_format import Format, Parts, Shape, bits, floats, shape_of_bits


@dataclass(frozen=True)
class GptqNumbers(Format):
    """Numbers of a GPTQ folder."""

    width: int = 4
    """Bits of a code: 2, 3, 4 or 8."""
    group_size: int = 128
    """Inputs that share a scale; -1 stands for all."""
    symmetric: bool = True
    """Whether zeros are the middle of the codes."""
    shift: int = 1
    """Number subtracted from zero points before they are stored: 1 in version 1 of the layout, 0 in version 2."""
    scale_type: torch.dtype = torch.float16

    def groups(self, inputs: int) -> int:
        """Number of groups of a layer."""
        return 1 if self.group_size == -1 else -(-inputs // self.group_size)

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        groups = self.groups(inputs)
        return {
            "packed": ((inputs * self.width // WORD, outputs), torch.int32),
            "zeros": ((groups, outputs * self.width // WORD), torch.int32),
            "scales": shape_of_bits((groups, outputs), self.scale_type),
            "groups": ((inputs,), torch.int32),
        }

    def flaw(self, outputs: int, inputs: int) -> str:
        if outputs * self.width % WORD or inputs * self.width % WORD:
            return f"its sizes ({outputs} x {inputs}) do not fill whole integers of {WORD} bits"
        return ""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight, rounded to the nearest codes."""
        scales, zeros = self.grid(weight)
        where = self.usual_groups(weight.shape[1])
        return self.assemble(self.rounded(weight.T, scales[where], zeros[where]), scales, zeros, where)

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        codes = unpack_rows(parts["packed"], self.width)
        zeros = unpack_rows(parts["zeros"].T.contiguous(), self.width).T + self.shift
        scales, where = floats(parts["scales"], self.scale_type).float(), parts["groups"].long()
        return ((codes - zeros[where]) * scales[where]).T.to(dtype)

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zeros [groups, outputs] that cover the values of a weight [outputs, inputs]."""
        size = weight.shape[1] if self.group_size == -1 else self.group_size
        short = -weight.shape[1] % size
        padded = torch.nn.functional.pad(weight, (0, short)).view(weight.shape[0], -1, size)
        low, high = padded.amin(2).clamp(max=0).T, padded.amax(2).clamp(min=0).T
        if self.symmetric:
            high = torch.maximum(high, -low)
            low = -high
        steps = 2**self.width - 1
        scales = ((high - low) / steps).to(self.scale_type).float()  # as they are stored
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        middle = torch.full_like(scales, (steps + 1) // 2)
        return scales, middle if self.symmetric else (-low / scales).round().clamp(self.shift, steps)

    def rounded(self, values: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest codes of values, each with its scale and zero."""
        return (values / scales + zeros).round().clamp(0, 2**self.width - 1).to(torch.int32)

    def usual_groups(self, inputs: int) -> Tensor:
        """Group of each input, in order [inputs]."""
        return torch.arange(inputs) // (inputs if self.group_size == -1 else self.group_size)

    def assemble(self, codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """The parts of codes [inputs, outputs], scales and zeros [groups, outputs], and groups [inputs]."""
        stored = (zeros.to(torch.int32) - self.shift) & (2**self.width - 1)
        return {
            "packed": pack_rows(codes, self.width),
            "zeros": pack_rows(stored.T.contiguous(), self.width).T.contiguous(),
            "scales": bits(scales.to(self.scale_type)),
            "groups": groups.to(torch.int32),
        }
