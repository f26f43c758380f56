"""The training strategy for pipeline parallelism: each rank trains and evaluates one or several stages of the model."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..clip import local
from ..micro_batch import MicroBatch, StepBatch
from ..precision import autocast
from ..strategy import LossFunction, StepLoss, Sums, SumsFunction, whole_scalar
from ..torch_strategy import TorchStrategy
from .balance import balanced_split
from .cut import cut_of, cut_stage, tied_head
from .forward_only import evaluate
from .pipeline_stage import HiddenStates, Stage, hidden_dtype
from .schedule import Pipeline, stages_of


class PipelineStrategy(TorchStrategy):
    """A rank holds one or several stages; the schedule owns the loop over micro-batches."""

    # -- placing ----------------------------------------------------------------------------------------------

    def split(self, model: PreTrainedModel) -> list[PreTrainedModel]:
        options, ranks = self.plan.pipelining, self.mesh.degrees.pipeline
        count = ranks * options.per_rank
        sizes = balanced_split(model, self.family, count, options.split)
        self.stages = stages_of(self.mesh.pipeline_rank, ranks, options)
        self.last = count - 1
        self.tied = tied_head(model, self.family)
        config = model.config.get_text_config()
        self.hidden = HiddenStates(config.hidden_size, hidden_dtype(self.plan), self.family.latents(config))
        self.pad_token = max(config.pad_token_id or 0, 0)
        return [cut_stage(model, self.family, stage, count, sizes) for stage in self.stages]

    def stage_root(self, part: PreTrainedModel) -> nn.Module:
        stage = self.stages[self.parts.index(part)]
        return Stage(part, stage == 0, stage == self.last, self.hidden, self.plan, self.noise, self.head)

    def after_placing(self) -> None:
        self.pipeline = Pipeline(
            dict(zip(self.stages, self.roots, strict=True)),
            self.mesh.degrees.pipeline,
            self.plan.pipelining,
            self.mesh.device,
            self.hidden,
            self.mesh.pipeline_group,
            self.pad_token,
            self.head,
        )
        if self.head is not None:  # other schedules run the last stage on several micro-batches before they go back
            self.head.at_once = self.plan.pipelining.schedule == "1f1b"

    def source_names(self, part: PreTrainedModel) -> dict[str, str]:
        return {self._head: self._embedding} if self.tied and self._holds_head(part) else {}

    def copies(self) -> set[str]:
        return {self._head} if self.tied and any(self._holds_head(part) for part in self.parts) else set()

    # -- one step ---------------------------------------------------------------------------------------------

    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        counts = self.mesh.begin_sums([batch.labels, batch.tokens])  # summed while the first forward passes run
        total = torch.zeros((), device=self.mesh.device)

        def weighted(outputs: Any, micro: MicroBatch) -> Tensor:
            with autocast(self.plan, self.mesh.device):
                loss = whole_scalar(loss_function(outputs, micro))
            total.add_(loss.detach())
            return loss * self.loss_weight(counts.result()[0])

        with self.loss_context(), nullcontext() if self.noise is None else self.noise.in_place():
            self.pipeline.step([micro.to(self.mesh.device) for micro in batch.micro_batches], weighted)
        return StepLoss(total, *counts.result())

    def reduce_gradients(self) -> None:
        super().reduce_gradients()
        if self.tied:
            self._sum_tied_gradients()

    @torch.no_grad()
    def _sum_tied_gradients(self) -> None:
        """Give embedding and head, which are copies of one parameter, the sum of the gradients of both.

        The sum of two numbers does not depend on their order, so the copies stay equal bit for bit.
        """
        ours = dict(self.named_parameters())
        here = [ours[name] for name in (self._embedding, self._head) if name in ours]
        if not here or not here[0].requires_grad:
            return
        gradients = [local(_gradient(parameter)) for parameter in here]
        if len(here) == 2:  # in a V the first rank also holds the last stage
            total = gradients[0] + gradients[1]
        else:
            other = self.pipeline.rank_of[self.last if self.pipeline.holds_first else 0]
            total = gradients[0] + _swap(gradients[0], other, self.mesh.pipeline_group)
        for gradient in gradients:
            gradient.copy_(total)

    def evaluate(self, batches: Iterable[MicroBatch], function: SumsFunction) -> Sums:
        def sums(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
            with autocast(self.plan, self.mesh.device):
                return function(outputs, micro)

        with self.loss_context():
            totals = evaluate(self.pipeline, (micro.to(self.mesh.device) for micro in batches), sums)
        self.free_gathered()
        return self.shared_sums(totals)

    def shared_sums(self, totals: dict[str, Tensor]) -> Sums:
        # Only the last stage has sums, and only it knows their names and shapes.
        shapes: list[Any] = [{name: tuple(total.shape) for name, total in totals.items()}]
        last = self.pipeline.rank_of[self.last]
        dist.broadcast_object_list(shapes, group=self.mesh.pipeline_group, group_src=last, device=torch.device("cpu"))

        def zeros(shape: tuple[int, ...]) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.mesh.device)

        return super().shared_sums(totals or {name: zeros(shape) for name, shape in shapes[0].items()})

    @property
    def generates(self) -> bool:
        return False  # no rank has the whole model

    @property
    def _embedding(self) -> str:
        return f"{cut_of(self.family).embedding}.weight"

    @property
    def _head(self) -> str:
        return f"{cut_of(self.family).head}.weight"

    def _holds_head(self, part: PreTrainedModel) -> bool:
        return self.stages[self.parts.index(part)] == self.last


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, which is set to zero if the step gave none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _swap(tensor: Tensor, other: int, group: dist.ProcessGroup | None) -> Tensor:
    """Exchange ``tensor`` for the tensor of the same shape on another rank of ``group``."""
    tensor = tensor.contiguous()
    received = torch.empty_like(tensor)
    messages = [
        dist.P2POp(dist.isend, tensor, group=group, group_peer=other),
        dist.P2POp(dist.irecv, received, group=group, group_peer=other),
    ]
    for work in dist.batch_isend_irecv(messages):
        work.wait()
    return received
