"""Read quantised weights that torchao or transformers saved in safetensors files.

Such a weight is stored as several tensors (``q_proj._weight_qdata``, ``q_proj._weight_scale``). The file's header says
in JSON which torchao class they belong to (``torchao.prototype.safetensors``). The tensors are converted to trireme's
own formats, so neither torchao nor pickle is needed. Classes that also quantise inputs, or whose layout is made for one
kernel, are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..weight_files import Stored
from .number_format import Format, bits
from .torchao_numbers import GroupIntegers, RowNumbers

PLAIN = "Tensor"
ROWS = {"Int8Tensor": "int8", "Float8Tensor": "fp8"}
"""Class -> kind of its 8-bit numbers, with a scale for each row."""
GROUPS = "IntxUnpackedToInt8Tensor"
"""Class of integers of less than 8 bits, stored in a byte each, with a scale and a zero point for each group."""
READ = (*ROWS, GROUPS)
ACTIVATIONS = ("act_quant_kwargs", "activation_quantization")
"""Attributes that say how inputs are quantised; none if they are not."""


class Packed(NamedTuple):
    """A quantised weight in a file."""

    form: Format
    sizes: tuple[int, int]
    read: Callable[[], dict[str, Tensor]]
    names: set[str]
    """Names of the weight's tensors in the file."""


def packed_weights(stored: Mapping[str, Stored]) -> dict[str, Packed]:
    """Path of each layer whose weight is quantised -> that weight.

    Raises:
        ValueError: a class or an attribute of it is not read, or a part is missing; the message says what to do.
    """
    found = {}
    for name, said in _classes(stored).items():
        path, _, weight = name.rpartition(".")
        if said["_type"] == PLAIN:
            continue
        if weight != "weight":
            raise ValueError(f"hold {name} quantised, but trireme reads only quantised weights of linear layers")
        parts = {part: f"{path}._weight_{part}" for part in said.get("_tensor_data_names") or ()}
        for one in parts.values():
            if one not in stored:
                raise ValueError(f"lack {one}, which belongs to a quantised layer; fetch the folder again")
        found[path] = _packed(name, said, parts, stored)
    return found


def _classes(stored: Mapping[str, Stored]) -> dict[str, dict[str, Any]]:
    """The description of each tensor in the headers of the files."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted({entry.file for entry in stored.values()}):
        if file.suffix != ".safetensors":
            why = f"were quantised by torchao and saved in a file that only pickle reads ({file.name})"
            raise ValueError(f"{why}; save them as safetensors: save_pretrained(folder, safe_serialization=True)")
        with safe_open(str(file), framework="pt") as opened:
            said = opened.metadata() or {}
        names = json.loads(said.get("tensor_names", "[]"))
        found |= {name: json.loads(said[name]) for name in names if name in said}
    if not any(one.get("_type") != PLAIN for one in found.values()):
        raise ValueError(
            "have no names of torchao's tensor classes in their headers; save them with torchao 0.15 or later"
        )
    return found


def _packed(name: str, said: Mapping[str, Any], parts: Mapping[str, str], stored: Mapping[str, Stored]) -> Packed:
    kind, about = said["_type"], said.get("_data") or {}
    if kind not in READ:
        raise ValueError(f"hold {name} as {kind} of torchao, but only {', '.join(READ)} can be read")
    if any(about.get(one) for one in ACTIVATIONS):
        raise ValueError(f"hold {name} as {kind}, which quantises inputs too, but only weight-only methods can be read")
    outputs, inputs = stored[parts["qdata"]].shape
    block = list(about.get("block_size") or [])
    names = set(parts.values())
    if kind in ROWS and block == [1, inputs]:
        return Packed(RowNumbers(ROWS[kind]), (outputs, inputs), lambda: _rows(parts, stored), names)
    four = kind == GROUPS and _value(about.get("target_dtype")) == "int4" and len(block) == 2 and block[0] == 1
    if four and not inputs % block[1] and not block[1] % 2:
        form = GroupIntegers(block[1])
        return Packed(form, (outputs, inputs), lambda: _groups(name, parts, stored), names)
    what = f"scales for blocks of {block}" if block else "scales of an unknown shape"
    raise ValueError(f"hold {name} as {kind} with {what}, but only rows of 8 bits and groups of 4 bits can be read")


def _rows(parts: Mapping[str, str], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    numbers, scales = stored[parts["qdata"]].read(), stored[parts["scale"]].read()
    return {"packed": numbers.contiguous().view(torch.int8), "scales": bits(scales.float().flatten())}


def _groups(name: str, parts: Mapping[str, str], stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    numbers, scales = stored[parts["qdata"]].read(), stored[parts["scale"]].read()
    zeros = stored[parts["zero_point"]].read() if "zero_point" in parts else None
    if zeros is not None and bool(zeros.any()):
        raise ValueError(
            f"hold {name} with zero points other than 0, but only symmetric values can be read; quantise it again"
        )
    codes = numbers & 15
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).view(torch.uint8)
    return {"packed": packed.contiguous(), "scales": bits(scales.float())}


def _value(said: Any) -> Any:
    """A value that is written with its type, as ``{"_type": "torch.dtype", "_data": "int4"}``."""
    return said.get("_data") if isinstance(said, Mapping) else said
