"""Plans that torch runs by itself: one process and DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..models.family import ModelFamily
from .apply import apply
from .mesh import Mesh
from .plan import Plan
from .precision import autocast, loss_scaler, set_backend
from .strategy import (
    LossFunction,
    MicroBatch,
    OptimizerFactory,
    StepBatch,
    StepLoss,
    StepResult,
    Strategy,
    Weights,
)


class TorchStrategy(Strategy):
    """Forward and backward per micro-batch, one gradient reduction per step."""

    def __init__(self, plan: Plan, mesh: Mesh, family: ModelFamily) -> None:
        super().__init__(plan, mesh)
        self.family = family
        self.scaler = loss_scaler(plan, mesh.device)

    # -- placing ----------------------------------------------------------------------------------------------

    def place(self, model: PreTrainedModel, weights: Weights) -> None:
        set_backend(self.plan)
        self._module = model
        self.wrapped = apply(model, self.family, self.plan, self.mesh, weights)

    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        self.optimizer = factory([(name, p) for name, p in self.named_parameters() if p.requires_grad])
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def module(self) -> PreTrainedModel:
        return self._module

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._module.named_parameters()

    # -- one step ---------------------------------------------------------------------------------------------

    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        labels, tokens = self.mesh.sum_integers([batch.labels, batch.tokens])
        # DDP averages over its ranks; the loss is already divided by the labels of all of them.
        weight = self.mesh.data_size / max(labels, 1)
        total = torch.zeros((), device=self.mesh.device)
        for position, micro in enumerate(batch.micro_batches, start=1):
            with self._reduction(last=position == len(batch.micro_batches)):
                loss = self._forward(micro, loss_function)
                self.scaler.scale(loss * weight).backward()
            total += loss.detach()
        return StepLoss(total, labels, tokens)

    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, max_norm, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        lr = self.optimizer.param_groups[0]["lr"]
        return StepResult(norm, lr, skipped=self.scaler.get_scale() < scale)

    def global_loss(self, loss: StepLoss) -> float:
        return self.mesh.sum_tensor(loss.total.clone()).item() / max(loss.labels, 1)

    def evaluate(self, micro_batch: MicroBatch, function: Callable[[Any, MicroBatch], Any]) -> Any:
        micro_batch = self._to_device(micro_batch)
        with torch.no_grad(), autocast(self.plan, self.mesh.device):
            return function(self._module(**_inputs(micro_batch)), micro_batch)

    def _forward(self, micro: MicroBatch, loss_function: LossFunction) -> Tensor:
        micro = self._to_device(micro)
        with autocast(self.plan, self.mesh.device):
            return loss_function(self.wrapped(**_inputs(micro)), micro)

    def _reduction(self, last: bool) -> Any:
        """Gradients are sent once per step: with the last micro-batch."""
        return (
            nullcontext() if last or not isinstance(self.wrapped, DistributedDataParallel) else self.wrapped.no_sync()
        )

    def _to_device(self, micro: MicroBatch) -> MicroBatch:
        return {key: value.to(self.mesh.device, non_blocking=True) for key, value in micro.items()}

    # -- state ------------------------------------------------------------------------------------------------

    def model_tensors(self) -> dict[str, Tensor]:
        persistent = self._module.state_dict()
        tensors = {name: p.detach() for name, p in self.named_parameters()}
        tensors.update({name: b for name, b in self._module.named_buffers() if name in persistent})
        return tensors

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": value for name, key, value in self._optimizer_state() if isinstance(value, Tensor)}

    def scalars(self) -> dict[str, Any]:
        counters = {f"{n}.{key}": value for n, key, value in self._optimizer_state() if not isinstance(value, Tensor)}
        return {"loss_scaler": self.scaler.state_dict(), "optimizer": counters}

    def load_optimizer(
        self,
        read: Callable[[dict[str, Tensor]], None],
        shapes: dict[str, tuple[torch.Size, torch.dtype]],
        scalars: dict[str, Any],
    ) -> None:
        tensors = {
            key: torch.empty(shape, dtype=dtype, device=self.mesh.device) for key, (shape, dtype) in shapes.items()
        }
        read(tensors)
        numbers = {name: number for number, name in enumerate(self._optimizer_names())}
        state: dict[int, dict[str, Any]] = {}
        for key, value in {**tensors, **scalars["optimizer"]}.items():
            name, _, part = key.rpartition(".")
            state.setdefault(numbers[name], {})[part] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.scaler.load_state_dict(scalars["loss_scaler"])

    def _optimizer_names(self) -> list[str]:
        """Parameter names in the order in which ``Optimizer.state_dict`` numbers them."""
        names = {id(p): name for name, p in self.named_parameters()}
        return [names[id(p)] for p in self.parameters]

    def _optimizer_state(self) -> Iterator[tuple[str, str, Any]]:
        for name, parameter in zip(self._optimizer_names(), self.parameters, strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield name, key, value


def _inputs(micro: MicroBatch) -> MicroBatch:
    """What the model takes: labels stay with the loss, which the engine normalises."""
    return {key: value for key, value in micro.items() if key != "labels"}
