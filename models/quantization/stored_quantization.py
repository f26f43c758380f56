"""Detect whether the weights in a folder are already quantised, in a format of bitsandbytes, GPTQ, AWQ or torchao, and
read them.

The tensors of a layer are joined to one entry under the usual name of the layer's weight. ``read`` dequantises the
weight, and ``packed`` returns the tensors as they are stored. Code that matches weights with a model by name therefore
sees ordinary weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..json_file import read_json
from ..weight_files import Stored
from .awq_numbers import EACH, AwqNumbers
from .bit_fields import WORD
from .eight_bits import EightBits
from .four_bits import FourBits, scale_values, values_of
from .gptq_numbers import GptqNumbers
from .number_format import Format, bits
from .stored_torchao import packed_weights

METHODS = ("bitsandbytes", "gptq", "awq", "torchao")
OLDER = ("quantize_config.json", "quant_config.json")
"""Files in which quantisers wrote their settings before ``quantization_config``."""
FOUR, EIGHT = ".weight.quant_state.bitsandbytes__", ".SCB"
Layer = tuple[Format, tuple[int, int], Callable[[], dict[str, Tensor]], set[str]]
"""Format, (outputs, inputs), the function that reads its parts, and the names of its tensors."""


@dataclass(frozen=True)
class StoredQuantization:
    """How a folder says that its weights are quantised."""

    method: str
    """One of ``METHODS``."""
    values: Mapping[str, Any]
    threshold: float | None = None
    """Threshold for 8-bit layers."""

    def whole(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """The weights of a folder by name, with one entry for all tensors of a quantised layer.

        Raises:
            ValueError: a layer lacks a tensor, or is stored in a layout that cannot be read.
        """
        of_method: dict[str, Callable[[Mapping[str, Stored]], Mapping[str, Layer]]] = {
            "bitsandbytes": self._of_bitsandbytes,
            "gptq": self._of_gptq,
            "awq": self._of_awq,
            "torchao": packed_weights,
        }
        layers = of_method[self.method](stored)
        taken = set().union(*(names for *_, names in layers.values())) if layers else set()
        found = {name: entry for name, entry in stored.items() if name not in taken}
        for path, (form, sizes, packed, names) in layers.items():
            file = stored[min(names)].file
            found[f"{path}.weight"] = _entry(file, form, sizes, packed)
        return found

    def _of_bitsandbytes(self, stored: Mapping[str, Stored]) -> dict[str, Layer]:
        states = {name.partition(FOUR)[0]: name for name in stored if FOUR in name}
        found = {path: _four_bits(path, state, stored) for path, state in states.items()}
        eight = [name.removesuffix(EIGHT) for name in stored if name.endswith(EIGHT)]
        return {**found, **{path: _eight_bits(path, stored, self.threshold) for path in eight}}

    def _of_gptq(self, stored: Mapping[str, Stored]) -> dict[str, Layer]:
        width, size = int(self.values.get("bits", 4)), int(self.values.get("group_size", 128))
        second = self.values.get("checkpoint_format") == "gptq_v2"

        def layer(path: str) -> Layer:
            order = {"groups": "g_idx"} if f"{path}.g_idx" in stored else {}
            own = _named(path, stored, packed="qweight", zeros="qzeros", scales="scales", **order)
            rows, outputs = stored[own["packed"]].shape
            kind = stored[own["scales"]].dtype
            form = GptqNumbers(width, size, bool(self.values.get("sym", True)), 0 if second else 1, kind)
            inputs, read = rows * WORD // width, _reader(own, stored)

            def packed() -> dict[str, Tensor]:
                return {"groups": form.usual_groups(inputs).to(torch.int32), **read()}

            return form, (outputs, inputs), packed, set(own.values())

        return {path: layer(path) for path in _with_ending(stored, ".qweight")}

    def _of_awq(self, stored: Mapping[str, Stored]) -> dict[str, Layer]:
        def layer(path: str) -> Layer:
            own = _named(path, stored, packed="qweight", zeros="qzeros", scales="scales")
            inputs, words = stored[own["packed"]].shape
            form = AwqNumbers(int(self.values.get("group_size", 128)), stored[own["scales"]].dtype)
            return form, (words * EACH, inputs), _reader(own, stored), set(own.values())

        return {path: layer(path) for path in _with_ending(stored, ".qweight")}


def stored_quantization(values: Mapping[str, Any], folder: Path) -> StoredQuantization | None:
    """How the weights in ``folder`` are quantised; None if nothing says that they are.

    Args:
        values: content of config.json.

    Raises:
        ValueError: the method or the layout cannot be read; the message names it and says what to do.
    """
    said = values.get("quantization_config") or values.get("compression_config")
    for name in OLDER if not said else ():
        if (folder / name).is_file():
            said = read_json(folder / name)
            said.setdefault("quant_method", "gptq" if name == OLDER[0] else "awq")
            said.setdefault("bits", said.get("w_bit", 4))
            said.setdefault("group_size", said.get("q_group_size", 128))
    if not said:
        return None
    method = str(said.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in said else ""))
    if why := _unread(method, said):
        raise ValueError(f"{why}; use the model before it was quantised")
    return StoredQuantization(method, said)


def _unread(method: str, said: Mapping[str, Any]) -> str:
    """The reason why weights of this method and layout cannot be read; empty if they can."""
    width, layout = int(said.get("bits", 4)), said.get("checkpoint_format", "gptq")
    if method not in METHODS:
        return f"are quantised by {method or 'an unnamed method'}, but trireme reads only {', '.join(METHODS)}"
    if method == "awq" and (said.get("version", "gemm") != "gemm" or width != 4):
        return (
            f"are in AWQ's layout {said.get('version', 'gemm')} of {width} bits, but trireme reads only gemm of 4 bits"
        )
    if method == "gptq" and width not in (2, 3, 4, 8):
        return f"are in GPTQ's layout of {width} bits, but trireme reads only 2, 3, 4 and 8"
    if method == "gptq" and layout not in ("gptq", "gptq_v2"):
        return f"are in GPTQ's layout {layout}, but trireme reads only gptq and gptq_v2"
    return ""


def _entry(file: Path, form: Format, sizes: tuple[int, int], packed: Callable[[], dict[str, Tensor]]) -> Stored:
    def read() -> Tensor:
        return form.unpack(packed(), *sizes, torch.float32).contiguous()

    return Stored(file, torch.Size(sizes), torch.float32, read, None, packed, form)


def _four_bits(path: str, state: str, stored: Mapping[str, Stored]) -> Layer:
    said = json.loads(bytes(stored[state].read().numpy().tobytes()))
    kind, nested = said["quant_type"], "nested_blocksize" in said
    form = FourBits(kind, int(said["blocksize"]), nested)
    endings = {"packed": "", "scales": ".absmax", "map": ".quant_map"}
    endings |= {"outer_scales": ".nested_absmax", "outer_map": ".nested_quant_map"} if nested else {}
    own = _named(f"{path}.weight", stored, "", **endings)
    _refuse_other_values(path, stored[own["map"]].read(), values_of(kind, "cpu"))
    if nested:
        _refuse_other_values(path, stored[own["outer_map"]].read(), scale_values("cpu"))

    def packed() -> dict[str, Tensor]:
        read = {part: stored[own[part]].read() for part in form.parts(1, 1) if part != "offset"}
        parts = {part: bits(one) if one.is_floating_point() else one for part, one in read.items()}
        parts["packed"] = read["packed"].contiguous().view(torch.uint8).flatten()
        return {**parts, **({"offset": bits(torch.tensor([said["nested_offset"]]))} if nested else {})}

    outputs, inputs = said["shape"]
    return form, (outputs, inputs), packed, {*own.values(), state}


def _eight_bits(path: str, stored: Mapping[str, Stored], threshold: float | None) -> Layer:
    own = _named(path, stored, packed="weight", scales="SCB")
    outputs, inputs = stored[own["packed"]].shape
    names = {*own.values(), *({f"{path}.weight_format"} & stored.keys())}
    return EightBits(threshold), (outputs, inputs), _reader(own, stored), names


def _reader(own: Mapping[str, str], stored: Mapping[str, Stored]) -> Callable[[], dict[str, Tensor]]:
    def packed() -> dict[str, Tensor]:
        read = {part: stored[name].read() for part, name in own.items()}
        return {part: bits(one) if one.is_floating_point() else one for part, one in read.items()}

    return packed


def _named(path: str, stored: Mapping[str, Stored], joint: str = ".", **endings: str) -> dict[str, str]:
    """The tensor name of each part of a quantised layer.

    Raises:
        ValueError: a tensor is missing.
    """
    names = {part: f"{path}{joint}{ending}" for part, ending in endings.items()}
    for name in names.values():
        if name not in stored:
            raise ValueError(f"lack {name}, which belongs to a quantised layer; fetch the folder again")
    return names


def _with_ending(stored: Mapping[str, Stored], ending: str) -> list[str]:
    return [name.removesuffix(ending) for name in stored if name.endswith(ending)]


def _refuse_other_values(path: str, stored: Tensor, ours: Tensor) -> None:
    if not torch.equal(stored.float(), ours):
        raise ValueError(f"hold {path} with a table of 4-bit values that differs from bitsandbytes'; quantise it again")
