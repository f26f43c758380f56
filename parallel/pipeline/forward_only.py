"""Evaluate a causal language model under pipeline parallelism: forward passes only, with batches of any shape.

Batches follow each other through the stages without waiting. Time is divided into turns: in a turn every rank runs at
most one stage on one batch, and then sends the hidden states to the next stage. Every rank computes the turns of all
ranks, and so knows which messages to expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

from ..micro_batch import MicroBatch
from ..strategy import SumsFunction, add_sums
from .pipeline_stage import head_inputs
from .schedule import Pipeline


class Turns:
    """The order in which ranks run stages, which every rank computes for itself with the same result."""

    def __init__(self, rank_of: dict[int, int]) -> None:
        self.rank_of, self.stages = rank_of, len(rank_of)
        self.done = [0] * self.stages
        """Batches that have left each stage."""

    def next(self, arrived: int) -> list[int]:
        """Stages that run in this turn, at most one per rank, when ``arrived`` batches have been read.

        On each rank the latest stage that can run goes first. The number of batches under way is limited, to bound
        memory.
        """
        taken: dict[int, int] = {}
        for stage in reversed(range(self.stages)):
            waiting = (self.done[stage - 1] if stage else arrived) - self.done[stage]
            crowded = stage == 0 and self.done[0] - self.done[-1] >= 2 * self.stages
            if waiting and not crowded:
                taken.setdefault(self.rank_of[stage], stage)
        return sorted(taken.values())


@torch.no_grad()
def evaluate(pipeline: Pipeline, batches: Iterable[MicroBatch], function: SumsFunction) -> dict[str, Tensor]:
    """Sums of ``function(outputs, batch)`` in double precision on the rank with the last stage; empty elsewhere.

    Args:
        batches: micro-batches on the device of the stages.
    """
    source, turns = iter(batches), Turns(pipeline.rank_of)
    under_way: dict[int, MicroBatch] = {}
    inbox: dict[tuple[int, int], Tensor] = {}
    totals: dict[str, Tensor] = {}
    arrived = 0
    while True:
        if arrived == turns.done[0] and (batch := next(source, None)) is not None:
            under_way[arrived] = batch
            arrived += 1
        stages = turns.next(arrived)
        if not stages:
            return totals
        outputs = {s: _forward(pipeline, s, turns.done[s], under_way, inbox) for s in stages if s in pipeline.roots}
        if pipeline.stages - 1 in outputs:
            logits, batch = outputs[pipeline.stages - 1], under_way[turns.done[-1]]
            add_sums(totals, function(CausalLMOutput(logits=logits), batch))  # type: ignore[arg-type]
        _pass_on(pipeline, stages, turns.done, outputs, under_way, inbox)
        for stage in stages:
            turns.done[stage] += 1
        under_way.pop(turns.done[-1] - 1, None)


def _forward(
    pipeline: Pipeline, stage: int, number: int, under_way: dict[int, MicroBatch], inbox: dict[tuple[int, int], Tensor]
) -> Tensor:
    inputs = {**under_way[number].inputs, **head_inputs(pipeline.head, [under_way[number]])}
    ids = inputs.pop("input_ids")
    return pipeline.roots[stage](inbox.pop((stage, number)) if stage else ids, **inputs)


def _pass_on(
    pipeline: Pipeline,
    stages: list[int],
    done: list[int],
    outputs: dict[int, Tensor],
    under_way: dict[int, MicroBatch],
    inbox: dict[tuple[int, int], Tensor],
) -> None:
    """Send this turn's hidden states to the next stages; sender and receiver post messages in the same order."""
    messages: list[dist.P2POp] = []
    for stage in stages:
        number, after = done[stage], stage + 1
        if after == pipeline.stages:
            continue
        if stage in outputs and after in pipeline.roots:  # both stages are on this rank, at the bottom of a V
            inbox[after, number] = outputs[stage]
        elif stage in outputs:
            messages.append(_message(dist.isend, outputs[stage].contiguous(), pipeline, after))
        elif after in pipeline.roots:
            rows, length = under_way[number].inputs["input_ids"].shape
            shape = rows, pipeline.hidden.length(length), pipeline.hidden.size
            inbox[after, number] = torch.empty(shape, dtype=pipeline.hidden.dtype, device=pipeline.device)
            messages.append(_message(dist.irecv, inbox[after, number], pipeline, stage))
    if messages:
        for work in dist.batch_isend_irecv(messages):
            work.wait()


def _message(kind: Callable[..., object], tensor: Tensor, pipeline: Pipeline, stage: int) -> dist.P2POp:
    return dist.P2POp(kind, tensor, group=pipeline.group, group_peer=pipeline.rank_of[stage])
