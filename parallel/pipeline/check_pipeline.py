"""Check a pipeline-parallel plan before any process starts, without importing torch."""

from __future__ import annotations

from typing import Any

from ...errors import Problem
from ...models.family import ModelFamily, families
from ..plan import Degrees, PipelineOptions, Plan

ZERO_BUBBLE = ("interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev")
"""Schedules that split the backward pass into gradients of inputs and gradients of weights."""


def check_pipeline(plan: Plan, degrees: Degrees, family: ModelFamily, config: Any, micro_batches: int) -> list[Problem]:
    """Problems of the pipeline of ``plan``.

    Args:
        config: the model's transformers configuration.
        micro_batches: number of micro-batches in a step on one data rank.
    """
    if degrees.pipeline == 1:
        return []
    if family.cut is None:
        able = ", ".join(name for name, other in families().items() if other.cut is not None)
        why = f"cuts the model into stages, and no cut of {family.title} is known"
        return [Problem("plan.pipeline", why, f"use 1, as plan=ddp or plan=fsdp_full_shard, or one of {able}")]
    options, layers = plan.pipelining, int(getattr(config, family.stacks[0].layers))
    return [
        *_check_layers(options, degrees.pipeline, layers),
        *_check_split(options, degrees.pipeline, layers),
        *_check_micro_batches(options, degrees.pipeline, micro_batches),
        *_check_options(plan),
    ]


def can_run(schedule: str, ranks: int, micro_batches: int) -> bool:
    """Whether torch's schedule accepts this number of micro-batches."""
    if schedule == "1f1b":
        return micro_batches >= ranks
    if schedule == "dualpipev":  # needs one per stage, and each rank has two stages
        return micro_batches >= 2 * ranks
    if schedule in ("interleaved_1f1b", "interleaved_zero_bubble"):  # need equal rounds of at least ``ranks``
        return micro_batches % max(1, micro_batches // ranks) == 0
    return True


def _check_layers(options: PipelineOptions, ranks: int, layers: int) -> list[Problem]:
    stages = ranks * options.per_rank
    if stages <= layers:
        return []
    each = "" if options.per_rank == 1 else f" ({ranks} ranks with {options.per_rank} each)"
    most = layers // options.per_rank
    fix = f"use at most pipeline={most}" if most > 1 else "use a model with more layers, or plan=ddp"
    if options.per_rank > 1 and ranks <= layers:
        fix += ", or plan.pipelining.schedule=1f1b, which needs one stage per rank"
    return [Problem("plan.pipeline", f"makes {stages} stages{each}, but the model has {layers} blocks", fix, ranks)]


def _check_split(options: PipelineOptions, ranks: int, layers: int) -> list[Problem]:
    if options.split is None:
        return []
    stages, split, problems = ranks * options.per_rank, options.split, []
    fix = "set it to null, which balances the stages"
    if len(split) != stages:
        why = f"names {len(split)} stages, but the plan has {stages}"
        problems.append(Problem("plan.pipelining.split", why, f"give {stages} numbers, or {fix}", split))
    if sum(split) != layers:
        why = f"distributes {sum(split)} blocks, but the model has {layers}"
        problems.append(Problem("plan.pipelining.split", why, f"make it add up to {layers}, or {fix}", split))
    return problems


def _check_micro_batches(options: PipelineOptions, ranks: int, micro_batches: int) -> list[Problem]:
    if can_run(options.schedule, ranks, micro_batches):
        return []
    needs = {"1f1b": f"at least {ranks}", "dualpipev": f"at least {2 * ranks}"}.get(
        options.schedule, f"a multiple of {ranks}, or fewer than {2 * ranks}"
    )
    factor = next(k for k in range(2, 2 * ranks + 1) if can_run(options.schedule, ranks, k * micro_batches))
    fix = (
        f"divide trainer.micro_batch_size by {factor}, or multiply trainer.global_batch_size by {factor}, which makes "
        f"{factor * micro_batches}; or write plan.pipelining.schedule=gpipe, which takes any number"
    )
    cut = "1 micro-batch" if micro_batches == 1 else f"{micro_batches} micro-batches"
    why = f"cuts a step into {cut}, but {options.schedule} on {ranks} ranks needs {needs}"
    return [Problem("trainer.micro_batch_size", why, fix)]


def _check_options(plan: Plan) -> list[Problem]:
    schedule = plan.pipelining.schedule
    if schedule not in ZERO_BUBBLE:
        return []
    problems = []
    if plan.compile:
        why = f"cannot be combined with {schedule}: compiled blocks cannot split their backward pass"
        problems.append(
            Problem("plan.compile", why, "set it to false, or use plan.pipelining.schedule=interleaved_1f1b", True)
        )
    if plan.recompute != "none":
        # Measured: up to 11 forward passes of each block, where undivided backward passes need 2. Selective
        # recomputation fails inside torch.
        why = f"cannot be combined with {schedule}: every part of the backward pass would recompute its block again"
        problems.append(
            Problem(
                "plan.recompute",
                why,
                "set it to none, or use plan.pipelining.schedule=interleaved_1f1b",
                plan.recompute,
            )
        )
    return problems
