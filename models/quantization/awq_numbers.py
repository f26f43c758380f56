"""Pack and unpack weights in the format of AWQ folders (version ``gemm``): 4-bit codes, eight to an int32, interleaved.

``weight[o, i] = scales[i // g, o] * (codes[i, o] - zeros[i // g, o])`` for output o, input i and groups of g inputs
(https://arxiv.org/abs/2306.00978). The files are those of AutoAWQ, the successor of llm-awq. Each int32 holds the codes
of eight neighbouring outputs; its k-th field of 4 bits holds output ``ORDER[k]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .bit_fields import WORD, pack_rows, unpack_rows
from .gptq_numbers import GptqNumbers
from .number_format import Format, Parts, Shape, bits, floats, shape_of_bits

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
WIDTH = 4
EACH = WORD // WIDTH
"""Codes in an integer."""


@dataclass(frozen=True)
class AwqNumbers(Format):
    """Numbers of an AWQ folder."""

    group_size: int = 128
    """Inputs that share a scale; -1 stands for all."""
    scale_type: torch.dtype = torch.float16

    def parts(self, outputs: int, inputs: int) -> dict[str, Shape]:
        groups = 1 if self.group_size == -1 else inputs // self.group_size
        return {
            "packed": ((inputs, outputs // EACH), torch.int32),
            "zeros": ((groups, outputs // EACH), torch.int32),
            "scales": shape_of_bits((groups, outputs), self.scale_type),
        }

    def flaw(self, outputs: int, inputs: int) -> str:
        if outputs % EACH or (self.group_size > 0 and inputs % self.group_size):
            return f"its sizes ({outputs} x {inputs}) are no multiples of {EACH} outputs and {self.group_size} inputs"
        return ""

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The parts of a weight, rounded to the nearest codes. AWQ's own scaling of the inputs is left out."""
        like = GptqNumbers(WIDTH, self.group_size, symmetric=False, shift=0, scale_type=self.scale_type)
        scales, zeros = like.grid(weight)
        where = like.usual_groups(weight.shape[1])
        codes = like.rounded(weight.T, scales[where], zeros[where])
        return {"packed": _pack(codes), "zeros": _pack(zeros), "scales": bits(scales.to(self.scale_type))}

    def unpack(self, parts: Parts, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
        codes, zeros = _unpack(parts["packed"]), _unpack(parts["zeros"])
        scales = floats(parts["scales"], self.scale_type).float()
        by_group = codes.view(scales.shape[0], -1, outputs)
        return ((by_group - zeros.unsqueeze(1)) * scales.unsqueeze(1)).view(inputs, outputs).T.to(dtype)


def _pack(codes: Tensor) -> Tensor:
    """Codes [n, outputs] as int32 [n, outputs / 8]."""
    ordered = codes.view(len(codes), -1, EACH)[..., list(ORDER)].reshape(len(codes), -1)
    return pack_rows(ordered.T.contiguous(), WIDTH).T.contiguous()


def _unpack(words: Tensor) -> Tensor:
    fields = unpack_rows(words.T.contiguous(), WIDTH).T.reshape(len(words), -1, EACH)
    back = sorted(range(EACH), key=ORDER.__getitem__)
    return fields[..., back].reshape(len(words), -1)
