"""A frozen linear layer whose weight is stored in a quantised format.

The layer stays an ``nn.Linear`` (or GPT-2's ``Conv1D``) for ``isinstance``, and LoRA adapters work as on any other
linear layer. The tensors of the quantised weight are parameters of the layer (``q_proj.packed``, ``q_proj.scales``), so
FSDP and ZeRO shard and gather them. Reading ``weight`` dequantises the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .number_format import Format, Parts

WEIGHT = "weight"


class Quantised:
    """The attributes and methods that a quantised layer has in addition to those of its class."""

    form: Format
    sizes: tuple[int, int]
    """(outputs, inputs)"""
    compute: torch.dtype | None
    """Type in which the layer multiplies matrices; None takes the type of autocast, or else that of the inputs."""
    layout: tuple[str, ...]
    """Names of the tensors of which the quantised weight consists."""

    @property
    def weight(self) -> Tensor:
        """The weight in the orientation of the layer's class, of type ``compute`` or else fp32, without gradient."""
        return oriented(self, whole(self, self.parts(), self.compute or torch.float32))  # type: ignore[arg-type]

    def parts(self) -> dict[str, Tensor]:
        """The tensors of the quantised weight by name, as they are on this rank now."""
        parameters: dict[str, Any] = self._parameters  # type: ignore[attr-defined]
        return {name: parameters[name] for name in self.layout}

    def forward(self, inputs: Tensor) -> Tensor:
        kind = inputs.device.type
        result_type = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else inputs.dtype
        with torch.autocast(kind, enabled=False):
            entered = inputs.to(self.compute or result_type)
            result = self.form.product(entered, self.parts(), self.sizes).to(result_type)
            bias = self._parameters.get("bias")  # type: ignore[attr-defined]
            return result if bias is None else result + bias.to(result_type)


class QuantisedLinear(Quantised, nn.Linear):  # type: ignore[misc]
    """An ``nn.Linear`` with a quantised weight."""


class QuantisedConv1D(Quantised, Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, whose weight is [inputs, outputs], with a quantised weight."""


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantisedLinear, Conv1D: QuantisedConv1D}
"""Class of a layer -> class of the quantised layer. Subclasses may do more than multiply, and are left alone."""


def quantise_layer(layer: nn.Module, form: Format, compute: torch.dtype | None) -> None:
    """Replace a layer's weight, on the meta device, by the tensors of the format ``form``, which have no values yet."""
    outputs, inputs = layer_sizes(layer)
    del layer._parameters[WEIGHT]
    parts = form.parts(outputs, inputs)
    layer.__class__ = KINDS[type(layer)]
    layer.form, layer.sizes, layer.compute, layer.layout = form, (outputs, inputs), compute, tuple(parts)  # type: ignore[assignment]
    for name, (shape, dtype) in parts.items():
        layer.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), False))


def quantised_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path, layer) of every quantised layer."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Quantised))


def with_whole_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model on the meta device whose layers have plain weights again; itself if none is quantised."""
    if not any(True for _ in quantised_layers(model)):
        return model
    plain = copy.deepcopy(model)
    back = {quantised: usual for usual, quantised in KINDS.items()}
    for _, layer in [*quantised_layers(plain)]:
        outputs, inputs = layer.sizes
        for name in layer.layout:
            del layer._parameters[name]
        layer.__class__ = back[type(layer)]
        weight = torch.empty(outputs, inputs, device="meta")
        kept = layer._parameters
        layer._parameters = {WEIGHT: nn.Parameter(oriented(layer, weight).contiguous(), False), **kept}
    return plain


def layer_sizes(layer: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer."""
    if isinstance(layer, Quantised):
        return layer.sizes
    shape = layer.get_parameter(WEIGHT).shape
    return (int(shape[1]), int(shape[0])) if isinstance(layer, Conv1D) else (int(shape[0]), int(shape[1]))


def oriented(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight [outputs, inputs] in the orientation of the layer's class, or back: GPT-2's layers are transposed."""
    return weight.T if isinstance(layer, Conv1D) else weight


def whole(layer: Any, parts: Parts, dtype: torch.dtype) -> Tensor:
    """The dequantised weight [outputs, inputs]."""
    outputs, inputs = layer.sizes
    if next(iter(parts.values())).is_meta:
        return torch.empty(outputs, inputs, dtype=dtype, device="meta")
    with torch.no_grad():
        return layer.form.unpack(parts, outputs, inputs, dtype)
