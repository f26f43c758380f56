"""The one interface between the training loop and the way a model is spread.

The loop knows only this class: a plan that owns its own micro-batch schedule (a pipeline), its own optimizer step
(DeepSpeed) or plain modules (one process, DDP, FSDP, tensor parallel) each implement it, and the loop has no branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .mesh import Mesh
from .plan import Plan

MicroBatch = dict[str, Tensor]
"""What one forward sees: model inputs by keyword, plus ``labels``; first dimension is the sample."""
LossFunction = Callable[[Any, MicroBatch], Tensor]
"""(model outputs, micro-batch) -> scalar *sum* of label losses in fp32."""
OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""(trainable parameters by plain name) -> optimizer with ``initial_lr`` in each group."""
Weights = Iterable[tuple[str, Tensor]]
"""Full tensors by plain name, one at a time; a strategy keeps only its own part of each."""


@dataclass
class StepBatch:
    """One data rank's share of a global batch."""

    micro_batches: list[MicroBatch]
    labels: int
    """Label tokens in this share."""
    tokens: int
    """Input tokens in this share, padding not counted."""
    samples: list[int]
    """Dataset indices of this share, in order."""

    def pin_memory(self) -> StepBatch:
        """Called by the data loader when it pins; keeps transfers to a GPU asynchronous."""
        self.micro_batches = [{k: v.pin_memory() for k, v in micro.items()} for micro in self.micro_batches]
        return self


@dataclass
class StepLoss:
    """The loss of one global batch before it is brought together: reduce it only when it is looked at."""

    total: Tensor
    """This rank's sum of label losses (scalar, on device)."""
    labels: int
    """Label tokens in the *global* batch."""
    tokens: int
    """Input tokens in the *global* batch."""


@dataclass
class StepResult:
    """What one optimizer step did."""

    grad_norm: Tensor
    """Norm of the global gradient before clipping (scalar)."""
    lr: float
    """Learning rate of the first parameter group."""
    skipped: bool = False
    """True when the loss scaler found an overflow and left the weights as they were."""


class Strategy(ABC):
    """Places a model on a mesh and steps it. One instance serves one run."""

    def __init__(self, plan: Plan, mesh: Mesh) -> None:
        self.plan = plan
        self.mesh = mesh

    @property
    @abstractmethod
    def module(self) -> PreTrainedModel:
        """The model as its family defines it, without wrappers: plain names, generation."""

    @abstractmethod
    def place(self, model: PreTrainedModel, weights: Weights) -> None:
        """Spread ``model`` (on the meta device) over the mesh and fill it from ``weights``."""

    @abstractmethod
    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        """Build the optimizer over the placed parameters."""

    @abstractmethod
    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        """Gradient of (sum of label losses / label tokens of the global batch), accumulated over micro-batches."""

    @abstractmethod
    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        """Clip by the norm of the global gradient, step with ``initial_lr * lr_scale``, drop the gradients."""

    @abstractmethod
    def global_loss(self, loss: StepLoss) -> float:
        """Mean label loss of the global batch; a collective call, equal on all ranks."""

    @abstractmethod
    def evaluate(self, micro_batch: MicroBatch, function: Callable[[Any, MicroBatch], Any]) -> Any:
        """``function(outputs, micro_batch)`` without gradient, in the plan's precision."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters by plain name; tied ones once."""

    @abstractmethod
    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers by plain name, sharing memory: saved from and loaded into."""

    @abstractmethod
    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Optimizer state as ``<parameter name>.<state name>``, sharing memory."""

    @abstractmethod
    def load_optimizer(
        self,
        read: Callable[[dict[str, Tensor]], None],
        shapes: dict[str, tuple[torch.Size, torch.dtype]],
        scalars: dict[str, Any],
    ) -> None:
        """Restore optimizer state: allocate by ``shapes`` (keys as in ``optimizer_tensors``), fill through ``read``."""

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """State that is not a tensor (loss scale, integer optimizer counters), as JSON."""
