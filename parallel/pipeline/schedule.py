"""Run a training step of a causal language model by torch's pipeline schedules, over the stages on this rank.

Every rank of a pipeline has all micro-batches, so ranks exchange only hidden states and their gradients. The shapes are
passed to the stages (torch calls this static mode), so torch needs no trial run to find them. When shapes change,
stages and schedule are built anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from transformers.modeling_outputs import CausalLMOutput

from ...models.head_loss import HeadLoss
from ..micro_batch import MicroBatch
from ..micro_batch_noise import stage_inputs
from ..plan import PipelineOptions
from ..strategy import LossFunction
from .equal_shapes import concatenated, pad_alike
from .pipeline_stage import HiddenStates, head_inputs
from .timed_stage import ActionTimes, TimedStage

SCHEDULES: dict[str, Callable[..., Any]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "looped_bfs": ScheduleLoopedBFS,
    "interleaved_zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv_zero_bubble": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}


def stages_of(rank: int, ranks: int, options: PipelineOptions) -> list[int]:
    """Stages on ``rank``, ascending: every ``ranks``-th one, or in a V the ``rank``-th from each end."""
    if options.schedule in options.V_SHAPED:
        return [rank, 2 * ranks - 1 - rank]
    return [rank + loop * ranks for loop in range(options.per_rank)]


class Pipeline:
    """This rank's stages, and one training step over them.

    Args:
        roots: the module that a forward pass calls, by number of the stage.
        ranks: number of ranks of the pipeline.
        group: process group of these ranks; None takes all ranks of the run.
        hidden: size and type of the hidden states that stages exchange.
        pad_token: token id at padding positions.
        head: how the head gives losses; None if it gives logits.
    """

    def __init__(
        self,
        roots: dict[int, nn.Module],
        ranks: int,
        options: PipelineOptions,
        device: torch.device,
        hidden: HiddenStates,
        group: dist.ProcessGroup | None = None,
        pad_token: int = 0,
        head: HeadLoss | None = None,
    ) -> None:
        self.head = head
        self.roots, self.ranks, self.options = dict(sorted(roots.items())), ranks, options
        self.device, self.hidden, self.group, self.pad_token = device, hidden, group, pad_token
        self.stages = ranks * options.per_rank
        self.rank_of = {stage: rank for rank in range(ranks) for stage in stages_of(rank, ranks, options)}
        self.times = ActionTimes(device)
        self._shape: tuple[int, ...] = ()
        self._schedule: Any = None

    @property
    def holds_first(self) -> bool:
        return 0 in self.roots

    @property
    def holds_last(self) -> bool:
        return self.stages - 1 in self.roots

    def step(self, micro_batches: list[MicroBatch], loss_function: LossFunction) -> None:
        """Forward and backward of all micro-batches; gradients are summed into the parameters.

        Args:
            loss_function: called on the last stage only, with outputs that have logits, and with the micro-batch, which
                is padded to the longest of the step. The backward pass starts from its result.
        """
        given, micro_batches = micro_batches, pad_alike(micro_batches, self.pad_token)
        shape = (len(micro_batches), *micro_batches[0].inputs["input_ids"].shape)
        if shape != self._shape:
            self._schedule = None  # free the old buffers before new ones are allocated
            self._schedule, self._shape = self._build(*shape), shape
        self._micro_batches, self._loss_function = micro_batches, loss_function
        inputs = concatenated(micro_batches) | stage_inputs(given, micro_batches)
        inputs |= head_inputs(self.head, micro_batches)
        ids = inputs.pop("input_ids")
        numbers = torch.arange(len(micro_batches))  # as targets, they tell the loss function which micro-batch it gets
        self._schedule.step(*([ids] if self.holds_first else []), target=numbers, return_outputs=False, **inputs)
        self._micro_batches, self._loss_function = [], None

    def _loss(self, logits: Tensor, number: Tensor) -> Tensor:
        assert self._loss_function is not None
        return self._loss_function(CausalLMOutput(logits=logits), self._micro_batches[int(number)])  # type: ignore[arg-type]

    def _build(self, count: int, rows: int, length: int) -> Any:
        """Stages and schedule for ``count`` micro-batches of [rows, length]."""
        ids = torch.empty(rows, length, dtype=torch.int64, device="meta")
        shape = rows, self.hidden.length(length), self.hidden.size
        states = torch.empty(shape, dtype=self.hidden.dtype, device="meta", requires_grad=True)
        stages = [
            TimedStage(
                root,
                stage,
                self.stages,
                self.device,
                input_args=states if stage else ids,
                output_args=states,  # wrong for the last stage, whose output is not sent
                group=self.group,
            )
            for stage, root in self.roots.items()
        ]
        for stage in stages:
            stage.times = self.times
        single = self.options.schedule in self.options.SINGLE
        build = SCHEDULES[self.options.schedule]
        return build(stages[0] if single else stages, count, loss_fn=self._loss, scale_grads=False)
