"""Formulas for the bytes that each parallelism plan should send and keep in memory, given its degrees and the model.

Symbols: N is the number of ranks of the axis that a line is about. P is the size in bytes of the parameters of one
pipeline stage and tensor shard, before data parallelism shards them. A = batch x length x hidden x 4 bytes is the size
of the hidden states of one micro-batch.

What a rank sends in a step of one micro-batch:

- DDP, ZeRO-0, copies by FSDP2: all-reduce 2 (N-1)/N P (ZeRO, section 7, https://arxiv.org/abs/1910.02054).
- ZeRO-1, ZeRO-2: reduce-scatter (N-1)/N P of gradients and all-gather (N-1)/N P of parameters (the same).
- ZeRO-3, FSDP full shard: reduce-scatter (N-1)/N P and all-gather 2 (N-1)/N P (the same).
- Hybrid shard (shards over S ranks, and R copies of them): as full shard over S, and all-reduce 2 (R-1)/R P/S over R
  (PyTorch FSDP, section 3.2.2, https://arxiv.org/abs/2304.11277).
- Tensor: all-reduce 2 (N-1)/N A, 4 times per block, once for the embedding and once for the head (Megatron-LM,
  https://arxiv.org/abs/1909.08053); the loss on split logits adds three numbers per position.
- Sequence: each all-reduce of a block becomes an all-gather and a reduce-scatter of (N-1)/N A (Korthikanti et al.,
  https://arxiv.org/abs/2205.05198); the entry and the exit of the blocks add one all-gather each, norms their gradient.
- Pipeline: send A forward and A back over each border between ranks (https://arxiv.org/abs/2104.04473, section 3.2).

In a step of several micro-batches, the bytes of tensor, sequence and pipeline parallelism multiply by their number. So
do those of gathering and reducing shards, except under plans that reduce once per step: ZeRO-1, pipelines, and
``fsdp.reduce_every_micro_batch=false``. FSDP keeps its head and the root's own parameters from the forward to the
backward pass, so they are gathered once, not twice.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from trireme.parallel.mesh import Mesh
from trireme.parallel.pipeline.schedule import stages_of
from trireme.parallel.plan import Plan

Bytes = dict[str, float]
"""Bytes for each type of collective, or for each kind of state."""
FLOAT = 4
"""Bytes of a number in fp32."""


@dataclass(frozen=True)
class Sizes:
    """A llama-like decoder and the step it is trained with."""

    parameters: dict[str, int]
    """Numbers in each parameter of the whole model."""
    layers: int
    hidden: int
    micro_batches: int
    """Micro-batches of one step on one data rank."""
    rows: int
    """Samples of a micro-batch."""
    length: int

    @property
    def hidden_states(self) -> int:
        """Bytes of the hidden states of one step on one data rank."""
        return self.micro_batches * self.rows * self.length * self.hidden * FLOAT


@dataclass(frozen=True)
class Part:
    """The part of the model that pipeline and tensor parallelism leave on one rank."""

    embedding: float
    blocks: float
    norm: float
    head: float
    """Bytes of parameters."""
    stages: list[int]
    """Stages on this rank, ascending."""
    rank_of: dict[int, int]
    """Pipeline rank of every stage."""
    layers: int
    """Blocks on this rank."""

    @property
    def bytes(self) -> float:
        return self.embedding + self.blocks + self.norm + self.head

    @property
    def first(self) -> bool:
        return self.stages[0] == 0

    @property
    def last(self) -> bool:
        return len(self.rank_of) - 1 in self.stages


def part_of(plan: Plan, mesh: Mesh, sizes: Sizes) -> Part:
    """The part of this rank; every stage has equally many blocks."""
    ranks, tensor = mesh.degrees.pipeline, mesh.degrees.tensor
    stages = stages_of(mesh.pipeline_rank, ranks, plan.pipelining) if ranks > 1 else [0]
    count = ranks * plan.pipelining.per_rank if ranks > 1 else 1
    rank_of = {s: r for r in range(ranks) for s in stages_of(r, ranks, plan.pipelining)} if ranks > 1 else {0: 0}
    each = sizes.layers // count
    blocks = {block for stage in stages for block in range(stage * each, (stage + 1) * each)}
    held: Bytes = defaultdict(float)
    for name, numbers in sizes.parameters.items():
        piece = numbers * FLOAT / (1 if "norm" in name else tensor)
        if ".layers." in name:
            held["blocks"] += piece if int(name.split(".layers.")[1].split(".")[0]) in blocks else 0
        else:
            where = "head" if "head" in name else "norm" if "norm" in name else "embedding"
            here = 0 in stages if where == "embedding" else count - 1 in stages
            held[where] += piece if here else 0
    return Part(held["embedding"], held["blocks"], held["norm"], held["head"], stages, rank_of, len(blocks))


def expected_traffic(plan: Plan, mesh: Mesh, sizes: Sizes) -> Bytes:
    """Bytes that this rank should send in a step, by kind of collective."""
    part = part_of(plan, mesh, sizes)
    parts = [_deepspeed(plan, mesh, sizes, part) if plan.uses_deepspeed else _data(plan, mesh, sizes, part)]
    if mesh.degrees.tensor > 1:
        parts.append(_tensor(plan, mesh.degrees.tensor, sizes, part))
    sent: Bytes = defaultdict(float)
    for kind, size in (item for term in parts for item in term.items()):
        sent[kind] += size
    for stage in part.stages if mesh.degrees.pipeline > 1 else ():
        for neighbour in (stage - 1, stage + 1):
            if part.rank_of.get(neighbour, mesh.pipeline_rank) != mesh.pipeline_rank:
                sent["send"] += sizes.hidden_states
    return sent


def _data(plan: Plan, mesh: Mesh, sizes: Sizes, part: Part) -> Bytes:
    """Traffic of DDP, of FSDP2, and of copies by FSDP2."""
    shard, copies, options = mesh.degrees.shard, mesh.degrees.replicate, plan.fsdp
    once = plan.data_parallel == "ddp" or mesh.degrees.pipeline > 1 or not options.reduce_every_micro_batch
    reductions = 1 if once else sizes.micro_batches
    kept = 1 if once and not options.reshard_after_forward else sizes.micro_batches
    twice = kept * (2 if options.reshard_after_forward else 1)
    gathered = twice * (part.embedding + part.blocks) + kept * (part.head + part.norm)
    return {
        "all-gather": _share(shard) * gathered,
        "reduce-scatter": _share(shard) * part.bytes * reductions,
        "all-reduce": 2 * _share(copies) * part.bytes / shard * reductions,
    }


def _deepspeed(plan: Plan, mesh: Mesh, sizes: Sizes, part: Part) -> Bytes:
    """Traffic of ZeRO as in the paper."""
    assert not isinstance(plan.deepspeed, str)
    stage, moved = plan.deepspeed.stage, _share(mesh.data_size) * part.bytes
    reductions = sizes.micro_batches if stage >= 2 else 1
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * sizes.micro_batches}[stage]
    if stage == 0:
        return {"all-reduce": 2 * moved}
    return {"reduce-scatter": reductions * moved, "all-gather": gathers * moved}


def _tensor(plan: Plan, ranks: int, sizes: Sizes, part: Part) -> Bytes:
    whole = 2 * _share(ranks) * sizes.hidden_states
    outside = part.first + part.last + (3 / sizes.hidden if part.last else 0)
    if not plan.sequence_parallel:
        return {"all-reduce": (outside + 4 * part.layers) * whole}
    norms = 2 * part.layers * sizes.hidden * FLOAT  # summed over ranks once per step
    return {
        "all-reduce": outside * whole + 2 * _share(ranks) * norms,
        "reduce-scatter": 2 * part.layers * whole,
        "all-gather": (2 * part.layers + len(part.stages)) * whole,
    }


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def expected_states(plan: Plan, mesh: Mesh, sizes: Sizes) -> Bytes:
    """Bytes of parameters, gradients and AdamW's state in fp32 that this rank should hold after a backward pass."""
    held = part_of(plan, mesh, sizes).bytes
    ranks = mesh.degrees.shard
    if not plan.uses_deepspeed:
        return {"parameters": held / ranks, "gradients": held / ranks, "optimizer": 2 * held / ranks}
    assert not isinstance(plan.deepspeed, str)
    stage, ranks = plan.deepspeed.stage, mesh.data_size
    masters = 0 if stage == 0 else 1
    return {
        "parameters": held / (ranks if stage == 3 else 1),
        "gradients": held / (ranks if stage >= 2 else 1),
        "optimizer": (2 + masters) * held / (ranks if stage >= 1 else 1),
    }


def formula(plan: Plan, mesh: Mesh) -> str:
    """``expected_traffic`` in words, for one micro-batch.

    N is the number of data-parallel ranks, S of shards, R of copies, T of tensor-parallel ranks; L is the number of
    blocks on the rank. P and A: see the top of this file.
    """
    degrees, parts = mesh.degrees, []
    if plan.uses_deepspeed:
        assert not isinstance(plan.deepspeed, str)
        parts.append("3(N-1)/N P" if plan.deepspeed.stage == 3 else "2(N-1)/N P")
    elif degrees.shard > 1:
        again = plan.fsdp.reshard_after_forward
        parts.append("3(S-1)/S P - (S-1)/S head" if again else "2(S-1)/S P")
    if not plan.uses_deepspeed and degrees.replicate > 1:
        parts.append("2(R-1)/R P/S" if degrees.shard > 1 else "2(R-1)/R P")
    if degrees.tensor > 1:
        parts.append(f"2(T-1)/T A (4L+{3 if plan.sequence_parallel else 2})")
    if degrees.pipeline > 1:
        parts.append("2 A per border")
    return " + ".join(parts)
