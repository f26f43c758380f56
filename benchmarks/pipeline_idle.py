"""Compute the idle time of pipeline-parallel ranks under torch's pipeline schedules.

The schedules run unchanged, one rank after the other, on stages that only record their calls. Then each recorded action
is given a start time: as soon as its rank is free and its inputs are ready. A forward takes 1 unit of time, a whole
backward 2, each half of a split backward 1, and messages none. For p ranks and m micro-batches, 1F1B
should be idle for (p - 1) / (m + p - 1) of the time (https://arxiv.org/abs/2104.04473, section 2.2).
``communication.py`` uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from trireme.parallel.pipeline.schedule import SCHEDULES, stages_of
from trireme.parallel.plan import PipelineOptions


class Action(NamedTuple):
    """``kind``: F forward, B whole backward, I gradients of inputs, W gradients of weights."""

    kind: str
    stage: int
    micro_batch: int


COST = {"F": 1, "B": 2, "I": 1, "W": 1}
"""Time of an action: the two halves of a backward each do as much as the forward."""


def idle_fraction(
    schedule: str,
    ranks: int,
    micro_batches: int,
    stages_per_rank: int | None = None,
    cost: dict[str, int] | None = None,
) -> float:
    """Share of (ranks x duration of a step) in which ranks do nothing, when all stages cost the same and messages none.

    Args:
        schedule: as in ``plan.pipelining.schedule``.
        cost: time of F, B, I and W; None takes ``COST``.
    """
    options = PipelineOptions(schedule=schedule, stages_per_rank=stages_per_rank)  # type: ignore[arg-type]
    cost = cost or COST
    orders = [recorded_order(options, rank, ranks, micro_batches) for rank in range(ranks)]
    duration = _duration(orders, ranks * options.per_rank, cost)
    busy = sum(cost[action.kind] for order in orders for action in order)
    return 1 - busy / (ranks * duration)


def recorded_order(options: PipelineOptions, rank: int, ranks: int, micro_batches: int) -> list[Action]:
    """The actions of torch's schedule on one rank, in order."""
    order: list[Action] = []
    count = ranks * options.per_rank
    stages = [_Recorder(stage, count, rank, ranks, order) for stage in stages_of(rank, ranks, options)]
    single = options.schedule in options.SINGLE
    schedule = SCHEDULES[options.schedule](
        stages[0] if single else stages, micro_batches, loss_fn=lambda output, target: output, scale_grads=False
    )
    schedule.step(target=torch.arange(micro_batches), return_outputs=False)
    return order


def _duration(orders: list[list[Action]], stages: int, cost: dict[str, int]) -> int:
    """Time at which the last action ends."""
    ends: dict[Action, int] = {}
    free, position = [0] * len(orders), [0] * len(orders)
    while any(position[rank] < len(order) for rank, order in enumerate(orders)):
        moved = False
        for rank, order in enumerate(orders):
            while position[rank] < len(order):
                action = order[position[rank]]
                ready = _ready(action, stages, ends)
                if ready is None:
                    break
                free[rank] = max(free[rank], ready) + cost[action.kind]
                # Other stages wait for the gradients of inputs, which a whole backward gives too.
                ends[action._replace(kind="I") if action.kind == "B" else action] = free[rank]
                position[rank], moved = position[rank] + 1, True
        if not moved:
            raise RuntimeError("the schedule waits for itself")
    return max(free)


def _ready(action: Action, stages: int, ends: dict[Action, int]) -> int | None:
    """The time at which the inputs of ``action`` are ready; None if it is not known yet."""
    kind, stage, micro_batch = action
    needs = {
        "F": Action("F", stage - 1, micro_batch) if stage else None,
        "W": Action("I", stage, micro_batch),
    }.get(kind, Action("I", stage + 1, micro_batch) if stage + 1 < stages else Action("F", stage, micro_batch))
    return 0 if needs is None else ends.get(needs)


@dataclass
class _Recorder:
    """A stage that records the calls of a schedule, and neither computes nor sends."""

    stage_index: int
    num_stages: int
    group_rank: int
    group_size: int
    order: list[Action]

    def __post_init__(self) -> None:
        self.is_first, self.is_last = self.stage_index == 0, self.stage_index == self.num_stages - 1
        self.device, self.submod, self.has_backward = torch.device("cpu"), nn.Identity(), True
        self.stage_index_to_group_rank: dict[int, int] = {}
        self.args_recv_info: dict[int, tuple] = {0: ()}
        self.act_send_info: dict[int, list] = {}

    def forward_one_chunk(self, number: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.order.append(Action("F", self.stage_index, number))
        return torch.zeros(())

    def backward_one_chunk(self, number: int, *args: Any, full_backward: bool = True, **kwargs: Any) -> None:
        self.order.append(Action("B" if full_backward else "I", self.stage_index, number))

    def backward_weight_one_chunk(self, number: int, *args: Any, **kwargs: Any) -> None:
        self.order.append(Action("W", self.stage_index, number))

    def _nothing(self, *args: Any, **kwargs: Any) -> list:
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = _nothing
    set_local_fwd_input = set_local_bwd_input = get_local_bwd_output = clear_runtime_states = _nothing
    perform_reduce_grad = scale_grads = _get_init_p2p_neighbors_ops = _nothing
    _prepare_forward_infra = _prepare_backward_infra = _nothing
