"""LoRA and DoRA adapters: add two small trained matrices, and for DoRA a trained vector of magnitudes, to a linear
layer whose own weight is frozen.

The layer keeps its class and the name of its weight, so model families, parallelism plans and checkpoints need no code
for adapters. The adapter's parameters belong to the layer (``q_proj.lora_A`` beside ``q_proj.weight``), so ZeRO-3 and
FSDP gather them together with the weight. A forward hook adds the adapter's output, so the layer's ``forward`` can
still be replaced by tensor parallelism.

LoRA computes ``x W' + s (x A') B'`` with A [rank, inputs] and B [outputs, rank] (https://arxiv.org/abs/2106.09685).
DoRA computes ``m / |W + s B A| (x W' + s (x A') B')``. Its norms are taken for each row, and are constants in the
backward pass (https://arxiv.org/abs/2402.09353, section 4.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .quantization.quantised_layer import Quantised, layer_sizes, whole

DOWN, UP, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
PARTS = (DOWN, UP, MAGNITUDE)
"""Names of an adapter's parameters, as peft calls them."""
DROPOUT = "lora_dropout"
"""Name of the dropout of an adapter's inputs, a child of the layer."""


class Whole:
    """How an adapter reaches its parameters and joins its results where they are whole on this rank.

    Plans that split layers put another object in its place (``parallel/tensor_adapters.py``).
    """

    def parameter(self, layer: nn.Module, name: str) -> Tensor:
        """The part of a parameter of ``layer`` that this rank computes with."""
        found = layer._parameters[name]
        assert found is not None
        return found

    def enter(self, inputs: Tensor) -> Tensor:
        """The layer's inputs, for the adapter."""
        return inputs

    def join(self, product: Tensor) -> Tensor:
        """The product of inputs with a matrix whose inputs may be split over ranks."""
        return product

    def join_squares(self, squares: Tensor) -> Tensor:
        """Sums of squares over the inputs, which may be split over ranks; without gradient."""
        return squares

    def local(self, output: Tensor) -> Tensor:
        """This rank's part of the layer's output."""
        return output

    def like(self, result: Tensor, output: Tensor) -> Tensor:
        """``result``, which has the values of this rank, in the form of the layer's output."""
        return result


class LowRank:
    """The adapter of one layer: an attribute of it, without parameters of its own."""

    def __init__(self, scaling: float, directional: bool, dropout: float) -> None:
        """
        Args:
            directional: also scale each row (DoRA).
        """
        self.scaling, self.directional, self.dropout = scaling, directional, dropout
        self.spread = Whole()
        self.off = False
        """Whether the layer computes as if it had no adapter (``adapters.adapters_off``)."""

    def add(self, layer: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        """The output of ``layer`` [..., outputs] plus the output of the adapter."""
        spread = self.spread
        if self.off:
            return output
        entered = spread.enter(inputs)
        drops = self.dropout > 0 and layer.training
        dropped = layer.get_submodule(DROPOUT)(entered) if drops else entered
        down, up = (spread.parameter(layer, name) for name in (DOWN, UP))
        low, found = spread.join(F.linear(dropped, down)), spread.local(output)
        if self.directional:
            result = self._directed(layer, F.linear(low, up) * self.scaling, found, dropped if drops else None)
            return spread.like((found + result).to(output.dtype), output)
        return spread.like(_plus(found, low, up, self.scaling).to(output.dtype), output)

    def _directed(self, layer: nn.Module, result: Tensor, output: Tensor, dropped: Tensor | None) -> Tensor:
        """The change of the output by DoRA. As in peft, dropout also acts on the inputs of the frozen weight."""
        spread = self.spread
        if dropped is not None:
            base = spread.join(F.linear(dropped, self._weight(layer)))
        else:
            bias = layer._parameters.get("bias")
            base = output if bias is None else output - spread.parameter(layer, "bias").to(output.dtype)
        factor = spread.parameter(layer, MAGNITUDE) / self._norms(layer)
        return (factor - 1) * base + factor * result

    def _weight(self, layer: nn.Module) -> Tensor:
        """The frozen weight of this rank [outputs, inputs]."""
        if isinstance(layer, Quantised):
            return whole(layer, layer.parts(), layer.compute or torch.float32)
        weight = self.spread.parameter(layer, "weight").detach()
        return weight.T if isinstance(layer, Conv1D) else weight

    @torch.no_grad()
    def _norms(self, layer: nn.Module) -> Tensor:
        """Length of each row of the sum of weight and adapter [outputs], in the type of the magnitudes."""
        down, up = (self.spread.parameter(layer, name) for name in (DOWN, UP))
        with torch.autocast(down.device.type, enabled=False):
            squares = (self._weight(layer).float() + self.scaling * (up.float() @ down.float())).square().sum(1)
        return self.spread.join_squares(squares).sqrt().to(down.dtype)


def _plus(found: Tensor, low: Tensor, up: Tensor, scaling: float) -> Tensor:
    """``found + scaling (low up')`` for found [..., outputs], low [..., rank] and up [outputs, rank]. The product is
    added as it is made, which saves three passes over a tensor of the size of ``found``."""
    if not found.dtype == low.dtype == up.dtype and not torch.is_autocast_enabled(found.device.type):
        return found + F.linear(low, up) * scaling
    flat = torch.addmm(found.flatten(0, -2), low.flatten(0, -2), up.T, alpha=scaling)
    return flat.view(found.shape)


def attach(layer: nn.Module, rank: int, scaling: float, directional: bool, dropout: float) -> None:
    """Give a linear layer on the meta device an adapter, in place."""
    inputs, outputs = sizes_of(layer)
    layer.lora = LowRank(scaling, directional, dropout)  # type: ignore[assignment]
    shapes = {DOWN: (rank, inputs), UP: (outputs, rank), **({MAGNITUDE: (outputs,)} if directional else {})}
    for name, shape in shapes.items():
        layer.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))
    if dropout > 0:
        layer.add_module(DROPOUT, nn.Dropout(dropout))
    layer.register_forward_hook(_add, with_kwargs=True)


def _add(layer: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
    inputs = arguments[0] if arguments else next(iter(named.values()))
    return layer.lora.add(layer, inputs, output)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a layer that can have an adapter."""
    return isinstance(module, nn.Linear | Conv1D)


def sizes_of(layer: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    outputs, inputs = layer_sizes(layer)
    return inputs, outputs


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of every layer with an adapter."""
    return ((path, module) for path, module in model.named_modules() if isinstance(adapter_in(module), LowRank))


def adapter_in(layer: nn.Module) -> LowRank | None:
    """The adapter of a layer; None if it has none."""
    found = layer.__dict__.get("lora")
    return found if isinstance(found, LowRank) else None


def is_part(name: str) -> bool:
    """Whether a parameter, by its plain name, is one of an adapter."""
    return name.rpartition(".")[2] in PARTS
