"""The planner behind ``plan=auto``: it chooses a plan and says why, and why it rejects the others.

Plans stand on ``RUNGS``, in the order in which people give up simplicity for memory: whole copies; sharded gradients
and optimizer state; sharded parameters; tensor ranks within a node; pipelines; and, last, offload. The lowest rung with
a plan that fits is taken, and on it the plan with the quickest estimated step. Estimates are good for an order, not as
a forecast: communication is taken not to overlap with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .memory import WIDTH, MemoryEstimate, ModelSizes, Step, estimate
from .plan import Degrees, Plan

USABLE = 0.9
"""Share of a device's memory that is planned with: the rest is for the context, fragmentation and small things."""
GIB = 2**30


class Speeds(NamedTuple):
    """Speeds by which plans are ordered: one rank of a usual training node (A100 class, NVLink, InfiniBand)."""

    half: float = 150e12
    """Operations per second in bf16 or fp16."""
    single: float = 50e12
    """In fp32."""
    node: float = 200e9
    """Bytes per second between ranks of one node."""
    network: float = 20e9
    """Between nodes, per rank."""
    host: float = 12e9
    """Between a rank's device and CPU memory; an optimizer on the CPU is not quicker."""


SPEEDS = Speeds()


@dataclass(frozen=True)
class Machine:
    """Processes and memory that a run can use."""

    ranks: int
    per_node: int
    """Ranks of one node."""
    memory: float
    """Bytes of one device; of the share of one rank, where the CPU is the device."""
    host: float
    """Bytes of CPU memory for one rank."""
    accelerator: bool = True
    """False where the CPU is the device."""


@dataclass(frozen=True)
class Candidate:
    """A plan with the degrees that it would run with."""

    plan: Plan
    degrees: Degrees
    changes: dict[str, int]
    """Degrees that are not the plan's own: ``{"tensor": 4}``."""
    rung: int
    flaw: str = ""
    """Why it cannot run at all."""

    @property
    def name(self) -> str:
        return " ".join([self.plan.name, *(f"{axis}={size}" for axis, size in self.changes.items())])


@dataclass(frozen=True)
class Assessed:
    """A candidate with its memory, traffic and time, and the verdict on it."""

    candidate: Candidate
    memory: MemoryEstimate | None = None
    traffic: float = 0.0
    """Bytes that a rank sends in a step."""
    seconds: float = 0.0
    """Estimated step; good for comparison only."""
    verdict: str = ""


@dataclass(frozen=True)
class Decision:
    """What ``choose`` has found."""

    chosen: Assessed | None
    others: list[Assessed]
    """The best degrees of every other plan, in the order of preference."""
    smallest: Assessed | None
    """What needs least memory; where nothing fits, how far away it is."""


RUNGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("keeps whole copies", ("single", "ddp", "fsdp_no_shard", "zero0")),
    ("shards gradients and optimizer state", ("fsdp_shard_grad_op", "fsdp_hybrid_shard_zero2", "zero2", "zero1")),
    ("shards parameters as well", ("fsdp_full_shard", "fsdp_hybrid_shard", "zero3")),
    ("splits layers within a node", ("tp", "tp_sp", "dp_tp")),
    (
        "cuts the model into stages",
        ("dp_pp", "pp_1f1b", "pp_interleaved", "pp_zero_bubble", "pp_gpipe", "3d", "3d_zero1"),
    ),
    ("offloads to CPU memory", ("fsdp_offload", "zero1_offload", "zero2_offload", "zero3_offload", "zero3_nvme")),
)
"""What the plans of a rung do, and their names; of equally quick ones the first is taken."""
UNPLANNED = {"zero3_nvme": "needs a folder on a fast disk: choose it yourself, with its nvme_path"}
"""Plans that are never chosen, and why."""


def degree_choices(name: str, machine: Machine) -> Iterator[dict[str, int]]:
    """Degrees to try for a plan of ``configs/plan``, beside its ``auto`` one; none where it makes no sense."""
    ranks, node = machine.ranks, machine.per_node

    def divisors(least: int, most: int) -> list[int]:
        return [size for size in (2**power for power in range(1, 11)) if least <= size <= most and ranks % size == 0]

    if name in UNPLANNED or (name.endswith("offload") and not machine.accelerator):
        return
    if name == "single" or ranks == 1:
        yield from [{}] if ranks == 1 and (name == "single" or name.endswith("offload")) else []
    elif name.startswith("fsdp_hybrid"):
        yield from [{"shard": node}] if 1 < node < ranks and ranks % node == 0 else []
    elif name in ("tp", "tp_sp"):
        yield from [{}] if ranks <= node else []
    elif name == "dp_tp":
        yield from ({"tensor": size} for size in divisors(2, min(8, node)) if size < ranks)
    elif name == "dp_pp":
        yield from ({"pipeline": size} for size in divisors(2, ranks // 2))
    elif name.startswith("3d"):
        for tensor in divisors(2, min(8, node)):
            stages = (size for size in divisors(2, ranks // 2) if ranks % (tensor * size) == 0)
            yield from ({"pipeline": size, "tensor": tensor} for size in stages if tensor * size < ranks)
    else:
        yield {}


def no_degrees(name: str, machine: Machine) -> str:
    """Why ``degree_choices`` gave none."""
    if name in UNPLANNED:
        return UNPLANNED[name]
    if name.endswith("offload") and not machine.accelerator:
        return "moves memory from an accelerator to the CPU, and there is no accelerator"
    if name == "single":
        return f"is for one process, and there are {machine.ranks}"
    if machine.ranks == 1:
        return "spreads over several processes, and there is one"
    if name.startswith("fsdp_hybrid"):
        return f"shards within a node and copies across nodes; {_nodes(machine)}"
    if name in ("tp", "tp_sp"):
        return f"would split layers across nodes ({machine.per_node} ranks each), whose links are too slow for that"
    return f"has no degrees for {machine.ranks} processes, {machine.per_node} on a node"


def choose(
    candidates: Sequence[Candidate],
    sizes: ModelSizes,
    step_of: Callable[[Degrees], Step],
    machine: Machine,
    flaw_of: Callable[[Candidate], str] = lambda candidate: "",
) -> Decision:
    """The best candidate, and what is wrong with the others.

    Args:
        step_of: the step of a data rank under some degrees.
        flaw_of: why a candidate cannot run, or nothing; asked only of what would be chosen, so it may take its time.
    """
    assessed = [_assess(candidate, sizes, step_of, machine) for candidate in candidates]
    assessed.sort(key=lambda one: (one.candidate.rung, bool(one.verdict), one.memory is None, _rank_of(one)))
    chosen = None
    for index, one in enumerate(assessed):
        if chosen is None and not one.verdict:
            flaw = flaw_of(one.candidate)
            assessed[index] = _with(one, flaw)
            chosen = None if flaw else one
    best: dict[str, Assessed] = {}
    for one in assessed:
        name = one.candidate.plan.name
        if (chosen is None or name != chosen.candidate.plan.name) and (name not in best or _nearer(one, best[name])):
            best[name] = one
    others = [_with(one, one.verdict or _why_not(one, chosen)) for one in best.values()]
    within = [one for one in assessed if one.memory is not None and not one.candidate.flaw]
    return Decision(chosen, others, min(within, key=_total, default=None))


def reason(chosen: Assessed, machine: Machine) -> str:
    """Why it was chosen, as a clause."""
    why = "the simplest plan there is" if chosen.candidate.rung == 0 else "the simplest that fits and can run"
    return f"{why}; needs {gibibytes(_total(chosen))} of {gibibytes(USABLE * machine.memory)} per rank"


def gibibytes(size: float) -> str:
    """For people: ``41 GiB``, ``2.5 GiB``, ``1.5 MiB``."""
    if size < GIB / 10:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / GIB:.1f} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def traffic_bytes(candidate: Candidate, sizes: ModelSizes, step: Step, machine: Machine) -> tuple[float, float]:
    """Bytes that a rank sends in a step within a node, and across nodes.

    ZeRO (https://arxiv.org/abs/1910.02054, section 7): an all-reduce over N ranks sends 2 (N-1)/N P, a gather or a
    reduction to shards (N-1)/N P. Megatron-LM (https://arxiv.org/abs/1909.08053): tensor ranks all-reduce the hidden
    states 4 times per block and micro-batch; sequence parallel sends as much. Stages send hidden states
    (https://arxiv.org/abs/2104.04473). Rings that leave a node are as slow as its link to the network.
    """
    plan, degrees, width = candidate.plan, candidate.degrees, WIDTH[candidate.plan.precision]
    sent = {True: 0.0, False: 0.0}
    held = sizes.total / (degrees.pipeline * degrees.tensor)
    for span, size in _data_traffic(plan, degrees, held, width, step):
        sent[span <= machine.per_node] += size
    hidden = step.micro_batches * step.micro_batch * step.length * sizes.hidden * width
    layers = sizes.layers / degrees.pipeline
    if degrees.tensor > 1:
        sent[degrees.tensor <= machine.per_node] += 2 * _share(degrees.tensor) * hidden * (4 * layers + 2)
    if degrees.pipeline > 1:
        sent[machine.ranks <= machine.per_node] += 2 * hidden * plan.pipelining.per_rank
    return sent[True], sent[False]


def _data_traffic(plan: Plan, degrees: Degrees, held: float, width: int, step: Step) -> Iterator[tuple[int, float]]:
    """(ranks from the first to the last of a ring, bytes sent in it)."""
    across = degrees.data * degrees.tensor
    if plan.uses_deepspeed:
        assert not isinstance(plan.deepspeed, str)
        stage, moved = plan.deepspeed.stage, _share(degrees.data) * held * width
        reductions = step.micro_batches if stage >= 2 else 1
        gathers = {0: 1, 1: 1, 2: 1, 3: 2 * step.micro_batches}[stage]
        yield across, (reductions + gathers) * moved
        return
    once = plan.data_parallel == "ddp" or degrees.pipeline > 1 or not plan.fsdp.reduce_every_micro_batch
    reductions = 1 if once else step.micro_batches
    if degrees.shard > 1:
        gathers = 2 * step.micro_batches if plan.fsdp.reshard_after_forward else reductions
        reduced = WIDTH[plan.fsdp.reduce_dtype]
        yield degrees.shard * degrees.tensor, _share(degrees.shard) * held * (gathers * width + reductions * reduced)
    yield across, 2 * _share(degrees.replicate) * held / degrees.shard * 4 * reductions


def _assess(candidate: Candidate, sizes: ModelSizes, step_of: Callable[[Degrees], Step], machine: Machine) -> Assessed:
    if candidate.flaw:
        return Assessed(candidate, verdict=candidate.flaw)
    step = step_of(candidate.degrees)
    memory = estimate(candidate.plan, candidate.degrees, sizes, step)
    within, across = traffic_bytes(candidate, sizes, step, machine)
    seconds = _compute(candidate, sizes, step) + within / SPEEDS.node + across / SPEEDS.network
    seconds += 2 * memory.host / SPEEDS.host
    verdict, host = "", memory.host + (0 if machine.accelerator else memory.total)
    if memory.total > USABLE * machine.memory:
        verdict = f"needs {gibibytes(memory.total)} of {gibibytes(USABLE * machine.memory)} per rank"
    elif host > USABLE * machine.host:
        verdict = f"needs {gibibytes(host)} of {gibibytes(USABLE * machine.host)} of CPU memory per rank"
    return Assessed(candidate, memory, within + across, seconds, verdict)


def _compute(candidate: Candidate, sizes: ModelSizes, step: Step) -> float:
    """Seconds of matrix products, and of waiting for other stages (https://arxiv.org/abs/2104.04473, section 2.2)."""
    plan, degrees = candidate.plan, candidate.degrees
    tokens = step.micro_batches * step.micro_batch * step.length
    operations = 6 * (sizes.blocks + sizes.head) + 12 * sizes.layers * sizes.hidden * step.length
    operations *= tokens / (degrees.pipeline * degrees.tensor) * (4 / 3 if plan.recompute == "full" else 1)
    waits = (degrees.pipeline - 1) / step.micro_batches
    if plan.pipelining.schedule == "zbv_zero_bubble":
        waits /= 3  # a third of a backward pass and a forward remain: https://arxiv.org/abs/2401.10241, section 2
    else:
        waits /= plan.pipelining.per_rank
    return operations / (SPEEDS.single if plan.precision == "fp32" else SPEEDS.half) * (1 + waits)


def _why_not(one: Assessed, chosen: Assessed | None) -> str:
    """What a plan that fits lacks beside the chosen one."""
    assert chosen is not None
    what, wins = one.candidate, chosen.candidate
    if what.rung != wins.rung:
        return f"fits, but {RUNGS[what.rung][0]}, for which there is no need"
    if what.plan.uses_deepspeed and not wins.plan.uses_deepspeed:
        less = (
            f", and sends {chosen.traffic / one.traffic:.1f}x less" if 0 < 1.05 * one.traffic < chosen.traffic else ""
        )
        return f"fits{less}, but DeepSpeed comes after what torch does itself ({wins.plan.name})"
    if one.traffic > 1.05 * chosen.traffic > 0:
        return f"fits, but sends {one.traffic / chosen.traffic:.1f}x the bytes of {wins.plan.name}"
    if one.seconds > 1.02 * chosen.seconds:
        return f"fits, but a step should take {one.seconds / chosen.seconds:.2f}x as long as under {wins.plan.name}"
    return f"fits, and should be as quick; {wins.plan.name} is the usual choice"


def _rank_of(one: Assessed) -> tuple[bool, float, int]:
    """Order on a rung: torch's own, then the quickest (to two digits), then the order of ``RUNGS``."""
    plan = one.candidate.plan
    return plan.uses_deepspeed, float(f"{one.seconds:.1e}"), RUNGS[one.candidate.rung][1].index(plan.name)


def _nearer(one: Assessed, other: Assessed) -> bool:
    """Whether ``one`` says better than ``other`` why a plan does not fit: it is estimated, and needs less memory."""
    if not other.verdict or one.memory is None:
        return False
    return other.memory is None or _total(one) < _total(other)


def _with(one: Assessed, verdict: str) -> Assessed:
    return Assessed(one.candidate, one.memory, one.traffic, one.seconds, verdict)


def _total(one: Assessed) -> float:
    return one.memory.total if one.memory is not None else 0.0


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _nodes(machine: Machine) -> str:
    return "there is one node" if machine.ranks <= machine.per_node else "the nodes do not divide the ranks"
