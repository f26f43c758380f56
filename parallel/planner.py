"""The planner behind ``plan=auto``: it chooses a parallelism plan, and explains why.

Plans are grouped in ``RUNGS``, from the simplest to those that save most memory: full replicas; sharded gradients and
optimizer state; sharded parameters; tensor parallelism within a node; pipelines; and, last, offload. The planner takes
the first group with a plan that fits into memory. In this group it takes the plan with the shortest estimated step. The
estimates are meant for comparing plans and do not predict step times: they assume that communication overlaps with
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .memory import WIDTH, MemoryEstimate, ModelSizes, Step, estimate
from .plan import Degrees, Plan

USABLE = 0.9
"""Share of a device's memory that a plan may use; the rest is for the CUDA context, fragmentation and small tensors."""
GIB = 2**30


class Speeds(NamedTuple):
    """Speeds of one rank that order the plans, typical of a training node (A100 class, NVLink, InfiniBand)."""

    half: float = 150e12
    """Operations per second in bf16 or fp16."""
    single: float = 50e12
    """Operations per second in fp32."""
    node: float = 200e9
    """Bytes per second between ranks of one node."""
    network: float = 20e9
    """Bytes per second between nodes, per rank."""
    host: float = 12e9
    """Bytes per second between a rank's device and CPU memory, also taken as the speed of an optimizer on the CPU."""


SPEEDS = Speeds()


@dataclass(frozen=True)
class Machine:
    """Processes and memory that a run can use."""

    ranks: int
    per_node: int
    """Ranks on one node."""
    memory: float
    """Bytes of memory of one device; if the CPU is the device, a rank's share of CPU memory."""
    host: float
    """Bytes of CPU memory for one rank."""
    accelerator: bool = True
    """Whether the device is an accelerator, not the CPU."""


@dataclass(frozen=True)
class Candidate:
    """A plan with resolved degrees."""

    plan: Plan
    degrees: Degrees
    changes: dict[str, int]
    """Degrees that differ from the plan's file, such as ``{"tensor": 4}``."""
    rung: int
    """Index in ``RUNGS``."""
    flaw: str = ""
    """Reason why the plan cannot run; empty if it can."""

    @property
    def name(self) -> str:
        return " ".join([self.plan.name, *(f"{axis}={size}" for axis, size in self.changes.items())])


@dataclass(frozen=True)
class Assessed:
    """A candidate with its estimates, and the verdict on it."""

    candidate: Candidate
    memory: MemoryEstimate | None = None
    traffic: float = 0.0
    """Bytes that a rank sends in a step."""
    seconds: float = 0.0
    """Estimated time of a step, for comparison only."""
    verdict: str = ""
    """Reason against the candidate, as a clause; empty if it fits."""


@dataclass(frozen=True)
class Decision:
    """The result of ``choose``."""

    chosen: Assessed | None
    others: list[Assessed]
    """Every other plan with its best degrees, in the order of preference."""
    smallest: Assessed | None
    """The candidate that needs least memory; if no plan fits, it shows how much memory is missing."""


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
"""(effect, names) of the plans of each rung. The order of names decides between plans with equal estimates."""
UNPLANNED = {"zero3_nvme": "needs a folder on a fast disk: choose it yourself, with its nvme_path"}
"""Plans that are never chosen automatically, with the reason."""


def degree_choices(name: str, machine: Machine) -> Iterator[dict[str, int]]:
    """Degrees to try for a plan of ``configs/plan``, beside its ``auto`` one; none if it does not suit the machine."""
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
    """Reason why ``degree_choices`` yields nothing for a plan."""
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
    """The best candidate, and the verdicts on the others.

    Args:
        step_of: gives the step of a data rank under some degrees.
        flaw_of: gives the reason why a candidate cannot run, or an empty string. It may be slow, because it is called
            only for a candidate that would be chosen.
    """
    assessed = [_assess(candidate, sizes, step_of, machine) for candidate in candidates]
    assessed.sort(key=lambda one: (one.candidate.rung, bool(one.verdict), one.memory is None, _rank_of(one)))
    chosen = None
    for index, one in enumerate(assessed):
        if chosen is None and not one.verdict:
            flaw = flaw_of(one.candidate)
            assessed[index] = _with_verdict(one, flaw)
            chosen = None if flaw else one
    best: dict[str, Assessed] = {}
    for one in assessed:
        name = one.candidate.plan.name
        if chosen is not None and name == chosen.candidate.plan.name:
            continue
        if name not in best or _fits_better(one, best[name]):
            best[name] = one
    others = [_with_verdict(one, one.verdict or _why_not(one, chosen)) for one in best.values()]
    within = [one for one in assessed if one.memory is not None and not one.candidate.flaw]
    return Decision(chosen, others, min(within, key=_total, default=None))


def reason(chosen: Assessed, machine: Machine) -> str:
    """Reason for the choice, as a clause."""
    why = "the simplest plan there is" if chosen.candidate.rung == 0 else "the simplest that fits and can run"
    return f"{why}; needs {gibibytes(_total(chosen))} of {gibibytes(USABLE * machine.memory)} per rank"


def gibibytes(size: float) -> str:
    """A size as text, such as ``41 GiB``, ``2.5 GiB`` or ``1.5 MiB``."""
    if size < GIB / 10:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / GIB:.1f} GiB" if size < 10 * GIB else f"{size / GIB:.0f} GiB"


def traffic_bytes(candidate: Candidate, sizes: ModelSizes, step: Step, machine: Machine) -> tuple[float, float]:
    """Bytes that a rank sends in a step: (within a node, across nodes).

    An all-reduce over N ranks sends 2 (N-1)/N P, and an all-gather or reduce-scatter sends (N-1)/N P (ZeRO,
    https://arxiv.org/abs/1910.02054, section 7). Tensor ranks all-reduce the hidden states 4 times per block and
    micro-batch (Megatron-LM, https://arxiv.org/abs/1909.08053); sequence parallel sends as much. Stages send hidden
    states (https://arxiv.org/abs/2104.04473). A ring over several nodes is as slow as the network between them.
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
    """(number of neighbouring ranks that a ring spans, bytes sent in the ring)."""
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
    """Seconds of matrix products and of waiting for other stages (https://arxiv.org/abs/2104.04473, section 2.2)."""
    plan, degrees = candidate.plan, candidate.degrees
    tokens = step.micro_batches * step.micro_batch * step.length
    operations = 6 * (sizes.blocks + sizes.head) + 12 * sizes.layers * sizes.hidden * step.length
    operations *= tokens / (degrees.pipeline * degrees.tensor) * (4 / 3 if plan.recompute == "full" else 1)
    waits = (degrees.pipeline - 1) / step.micro_batches
    if plan.pipelining.schedule == "zbv_zero_bubble":
        waits /= 3  # a third of the idle time remains: https://arxiv.org/abs/2401.10241, section 2
    else:
        waits /= plan.pipelining.per_rank
    return operations / (SPEEDS.single if plan.precision == "fp32" else SPEEDS.half) * (1 + waits)


def _why_not(one: Assessed, chosen: Assessed | None) -> str:
    """Reason why a plan that fits is not the chosen one."""
    assert chosen is not None
    what, wins = one.candidate, chosen.candidate
    if what.rung != wins.rung:
        return f"fits, but {RUNGS[what.rung][0]}, which is not needed"
    if what.plan.uses_deepspeed and not wins.plan.uses_deepspeed:
        less = (
            f", and sends {chosen.traffic / one.traffic:.1f}x less" if 0 < 1.05 * one.traffic < chosen.traffic else ""
        )
        return f"fits{less}, but torch's own plans come before DeepSpeed's ({wins.plan.name})"
    if one.traffic > 1.05 * chosen.traffic > 0:
        return f"fits, but sends {one.traffic / chosen.traffic:.1f}x the bytes of {wins.plan.name}"
    if one.seconds > 1.02 * chosen.seconds:
        return f"fits, but a step should take {one.seconds / chosen.seconds:.2f}x as long as under {wins.plan.name}"
    return f"fits, and should be as quick; {wins.plan.name} is the usual choice"


def _rank_of(one: Assessed) -> tuple[bool, float, int]:
    """Sort key within a rung: torch's own plans first, then the shorter step (to two digits), then ``RUNGS``."""
    plan = one.candidate.plan
    return plan.uses_deepspeed, float(f"{one.seconds:.1e}"), RUNGS[one.candidate.rung][1].index(plan.name)


def _fits_better(one: Assessed, other: Assessed) -> bool:
    """Whether ``one`` should stand for its plan instead of ``other``, which does not fit: it needs less memory."""
    if not other.verdict or one.memory is None:
        return False
    return other.memory is None or _total(one) < _total(other)


def _with_verdict(one: Assessed, verdict: str) -> Assessed:
    return Assessed(one.candidate, one.memory, one.traffic, one.seconds, verdict)


def _total(one: Assessed) -> float:
    return one.memory.total if one.memory is not None else 0.0


def _share(ranks: int) -> float:
    return (ranks - 1) / ranks


def _nodes(machine: Machine) -> str:
    return "there is one node" if machine.ranks <= machine.per_node else "the nodes do not divide the ranks"
