"""Split the LoRA adapters of linear layers over tensor-parallel ranks, in the same way as the layers.

If a layer is split by outputs (column-parallel), its adapter's first matrix is whole on each rank and the second matrix
is split by rows. If a layer is split by inputs (row-parallel), the first matrix is split by columns, its products are
summed over ranks, and the second matrix is whole. The result is exact. LoRA on a row-parallel layer adds one all-reduce
to the forward pass, of as many numbers for each token as the adapter's rank; on a column-parallel layer it adds none.
DoRA also sums the squared norms of the rows and, with dropout, the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from ..models.low_rank import DOWN, MAGNITUDE, UP, Whole, adapter_in
from .tensor_styles import Border, distribute, split_placement

Gradient = Callable[[], Placement]
"""Placement of the gradient of a parameter that every rank holds completely: the gradient itself, or a partial sum."""


@dataclass
class Spread(Whole):
    """How the adapter of a layer computes if the layer's parameters are DTensors."""

    border: Border
    gradients: Mapping[str, Gradient] = field(default_factory=dict)
    """Parameter that every rank holds completely -> placement of its gradient."""

    def parameter(self, layer: nn.Module, name: str) -> Tensor:
        found = layer._parameters[name]
        assert isinstance(found, DTensor)
        gradient = self.gradients.get(name)
        return found.to_local(grad_placements=None if gradient is None else [gradient()])


class SplitInputs(Spread):
    """Each rank sees some inputs of the layer; the layer's outputs are whole."""

    def join(self, product: Tensor) -> Tensor:
        return self.border.leave(product)

    def join_squares(self, squares: Tensor) -> Tensor:
        dist.all_reduce(squares, group=self.border.mesh.get_group())
        return squares


class SplitVocabulary(Spread):
    """Each rank computes the logits of some tokens, which are a DTensor."""

    def enter(self, inputs: Tensor) -> Tensor:
        return self.border.enter(inputs)

    def local(self, output: Tensor) -> Tensor:
        assert isinstance(output, DTensor)
        return output.to_local()

    def like(self, result: Tensor, output: Tensor) -> Tensor:
        assert isinstance(output, DTensor)
        return DTensor.from_local(
            result, output.device_mesh, output.placements, run_check=False, shape=output.shape, stride=output.stride()
        )


def split_adapter_by_output(layer: nn.Module, border: Border, parts: int = 1) -> None:
    """Split the adapter of a layer whose outputs are split over the ranks."""
    _split_outputs(layer, border, Spread(border, {DOWN: Partial}), parts)


def split_adapter_of_head(layer: nn.Module, border: Border) -> None:
    """Split the adapter of a head whose logits are split over the ranks by token of the vocabulary."""
    _split_outputs(layer, border, SplitVocabulary(border, {DOWN: Partial}), 1)


def split_adapter_by_input(layer: nn.Module, border: Border, parts: int = 1) -> None:
    """Split the adapter of a layer whose inputs are split over the ranks."""

    def outside() -> Placement:
        return border.outside_gradient

    if (adapter := adapter_in(layer)) is None:
        return
    inputs = layer.get_parameter(DOWN).shape[1]
    distribute(layer, DOWN, border.mesh, split_placement(1, parts, inputs, border.mesh))
    distribute(layer, UP, border.mesh, Replicate())
    if adapter.directional:
        distribute(layer, MAGNITUDE, border.mesh, Replicate())
    adapter.spread = SplitInputs(border, {UP: outside, MAGNITUDE: outside, "bias": outside})


def replicate_adapter(layer: nn.Module, border: Border, gradient: Gradient = Replicate) -> None:
    """Keep the whole adapter of a layer that every rank has whole; ``gradient`` as for the layer's own parameters."""
    if (adapter := adapter_in(layer)) is None:
        return
    names = (DOWN, UP, MAGNITUDE) if adapter.directional else (DOWN, UP)
    for name in names:
        distribute(layer, name, border.mesh, Replicate())
    adapter.spread = Spread(border, {name: gradient for name in (*names, "bias")})


def _split_outputs(layer: nn.Module, border: Border, spread: Spread, parts: int) -> None:
    if (adapter := adapter_in(layer)) is None:
        return
    outputs = layer.get_parameter(UP).shape[0]
    rows = Shard(0) if parts == 1 else split_placement(0, parts, outputs, border.mesh)
    distribute(layer, DOWN, border.mesh, Replicate())
    distribute(layer, UP, border.mesh, rows)
    if adapter.directional:
        distribute(layer, MAGNITUDE, border.mesh, rows)
    adapter.spread = spread
