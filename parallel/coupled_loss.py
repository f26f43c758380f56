"""Contrastive and other losses that compare samples of a batch with each other, computed over the *global* batch.

A first forward pass without gradients computes the features of every sample of the step. The features are gathered from
all data ranks, and the loss and its gradient with respect to them are computed. A second forward pass over the
micro-batches carries this gradient back into the weights (GradCache, https://arxiv.org/abs/2101.06983). A sample is
therefore compared with the whole global batch, whatever the micro-batch size and the number of ranks are. Both passes
use the same dropout masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .mesh import Mesh
from .micro_batch import MicroBatch, map_tensors

Features = dict[str, Tensor]
"""Features by name: a row per sample, or a number that all samples share, such as a temperature."""


class CoupledTask(Protocol):
    """The part of a task that a coupled loss needs."""

    def features(self, outputs: Any) -> Features:
        """Features of a micro-batch, from the outputs of the model."""
        ...

    def loss(self, outputs: Features, targets: dict[str, Any]) -> Tensor:
        """Sum of the losses of all samples of the global batch."""
        ...


@dataclass
class FeatureGradients:
    """Gradient of the loss with respect to the features of this rank's micro-batches."""

    loss: Tensor
    """The loss of the global batch, divided by the data ranks: their sum is the loss."""
    parts: list[Features]
    """The gradient with respect to the features, for each micro-batch."""

    def surrogate(self, number: int, features: Features) -> Tensor:
        """A scalar whose gradient with respect to the weights is the contribution of micro-batch ``number`` to the
        loss's gradient."""
        parts = self.parts[number].items()
        return torch.stack([(features[name] * part).sum().float() for name, part in parts]).sum()


def feature_gradients(
    task: CoupledTask, parts: list[Features], micro_batches: list[MicroBatch], mesh: Mesh
) -> FeatureGradients:
    """The loss, and its gradients for the features ``parts`` of this rank's micro-batches; a collective call."""
    own = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    whole = {name: gathered(value, mesh).requires_grad_() if value.ndim else value for name, value in own.items()}
    shared = {name: value.requires_grad_() for name, value in whole.items() if not value.ndim}
    targets = {
        name: map_tensors(_joined_trees([micro.targets[name] for micro in micro_batches]), lambda t: gathered(t, mesh))
        for name in micro_batches[0].targets
    }
    with torch.enable_grad():
        loss = task.loss(whole, targets)
        gradients = dict(zip(whole, torch.autograd.grad(loss, list(whole.values()), allow_unused=True), strict=True))
    sizes = [micro.rows for micro in micro_batches]
    first, count = mesh.data_rank * sum(sizes), len(micro_batches) * mesh.data_size
    found: list[Features] = []
    for size in sizes:
        rows = slice(first, first + size)
        first += size
        found.append(
            {
                name: gradient / count if name in shared else gradient[rows]
                for name, gradient in gradients.items()
                if gradient is not None
            }
        )
    return FeatureGradients(loss.detach() / mesh.data_size, found)


def gathered(tensor: Tensor, mesh: Mesh) -> Tensor:
    """The rows of all data ranks, in their order; every rank must have equally many."""
    if mesh.data_group is None:
        return tensor.detach().clone()
    parts = [torch.empty_like(tensor) for _ in range(mesh.data_size)]
    torch.distributed.all_gather(parts, tensor.detach().contiguous(), group=mesh.data_group)
    return torch.cat(parts)


def noise_state(device: torch.device) -> list[Tensor]:
    """State of the generators that a forward pass on ``device`` draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def restore_noise(states: list[Tensor], device: torch.device) -> None:
    """Set the generators back, so that they draw again what they drew after ``noise_state``."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _joined(parts: list[Tensor]) -> Tensor:
    """Rows of all micro-batches, in fp32 at least. A number that samples share is equal in all of them, so the first is
    taken."""
    exact = [part.detach().to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    return torch.cat(exact) if parts[0].ndim else exact[0].clone()


def _joined_trees(trees: list[Any]) -> Any:
    if isinstance(trees[0], Tensor):
        return torch.cat(trees)
    return {name: _joined_trees([tree[name] for tree in trees]) for name in trees[0]}
