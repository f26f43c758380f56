"""Tests of which parallelism plan ``plan=auto`` prefers, with made-up model sizes and machines."""

from __future__ import annotations

from dataclasses import replace

import pytest
from trireme.parallel.memory import ModelSizes, Step
from trireme.parallel.plan import Degrees, FSDPOptions, Plan
from trireme.parallel.planner import GIB, RUNGS, Candidate, Machine, choose, degree_choices, no_degrees, traffic_bytes
from trireme.parallel.zero.options import DeepSpeedOptions

SIZES = ModelSizes(
    embedding=0, blocks=10**9, head=0, rest=0, layers=10, hidden=1000, heads=10, key_value_heads=10, inner=4000,
    vocabulary=1000,
)  # fmt: skip
STEP = Step(micro_batch=1, length=100, micro_batches=2)
PLANS = {
    "ddp": Plan(name="ddp", replicate="auto"),
    "zero2": Plan(name="zero2", shard="auto", data_parallel="deepspeed", deepspeed=DeepSpeedOptions(stage=2)),
    "fsdp_shard_grad_op": Plan(
        name="fsdp_shard_grad_op", shard="auto", data_parallel="fsdp", fsdp=FSDPOptions(reshard_after_forward=False)
    ),
    "fsdp_full_shard": Plan(name="fsdp_full_shard", shard="auto", data_parallel="fsdp"),
    "tp": Plan(name="tp", tensor="auto"),
    "fsdp_offload": Plan(name="fsdp_offload", shard="auto", data_parallel="fsdp", fsdp=FSDPOptions(offload=True)),
}


def candidate(name: str, ranks: int, flaw: str = "") -> Candidate:
    rung = next(index for index, (_, names) in enumerate(RUNGS) if name in names)
    return Candidate(PLANS[name], PLANS[name].degrees(ranks), {}, rung, flaw)


def machine(gib: float, ranks: int = 8, per_node: int = 8, host: float = 64) -> Machine:
    return Machine(ranks, per_node, gib * GIB, host * GIB)


def chosen(there: Machine) -> str | None:
    decision = choose([candidate(name, there.ranks) for name in PLANS], SIZES, lambda degrees: STEP, there)
    return decision.chosen and decision.chosen.candidate.plan.name


@pytest.mark.parametrize(
    ("gib", "plan"),
    [
        (20, "ddp"),  # 16 bytes for each of 1e9 parameters
        (9, "fsdp_shard_grad_op"),  # 16 / 8, and gathered parameters
        (5, "fsdp_full_shard"),
        (2.25, "tp"),  # gathers nothing
        (1.9, "fsdp_offload"),
        (0.5, None),
    ],
)
def test_less_memory_climbs_the_rungs(gib: float, plan: str | None) -> None:
    assert chosen(machine(gib)) == plan


def test_offload_needs_memory_of_the_host() -> None:
    assert chosen(machine(1.9, host=1)) is None


def test_every_other_plan_has_a_reason() -> None:
    decision = choose([candidate(name, 8) for name in PLANS], SIZES, lambda degrees: STEP, machine(9))
    verdicts = {one.candidate.plan.name: one.verdict for one in decision.others}
    assert verdicts["ddp"] == "needs 15 GiB of 8.1 GiB per rank"
    assert "torch's own plans come before DeepSpeed's (fsdp_shard_grad_op)" in verdicts["zero2"]
    assert verdicts["tp"] == "fits, but splits layers within a node, which is not needed"
    assert set(verdicts) == PLANS.keys() - {"fsdp_shard_grad_op"} and all(verdicts.values())


def test_what_cannot_run_is_passed_over_with_its_reason() -> None:
    here = [candidate("ddp", 8, "has a flaw"), candidate("zero2", 8), candidate("fsdp_full_shard", 8)]
    decision = choose(here, SIZES, lambda degrees: STEP, machine(80), lambda one: "late" * one.plan.uses_deepspeed)
    assert decision.chosen is not None and decision.chosen.candidate.plan.name == "fsdp_full_shard"
    assert [one.verdict for one in decision.others] == ["has a flaw", "late"]


def test_the_smallest_is_known_where_nothing_fits() -> None:
    decision = choose([candidate(name, 8) for name in PLANS], SIZES, lambda degrees: STEP, machine(0.1))
    assert decision.chosen is None and decision.smallest is not None
    assert decision.smallest.candidate.plan.name == "fsdp_offload"


def test_sharding_within_nodes_is_quicker_than_across_them() -> None:
    """Both plans are on one rung; the one with copies across nodes sends 1/8 of the gradients across them."""
    hybrid = Plan(name="fsdp_hybrid_shard", replicate="auto", shard=8, data_parallel="fsdp")
    pair = [Candidate(hybrid, hybrid.degrees(16), {"shard": 8}, 2), candidate("fsdp_full_shard", 16)]
    decision = choose(pair, SIZES, lambda degrees: STEP, machine(80, ranks=16))
    assert decision.chosen is not None and decision.chosen.candidate.name == "fsdp_hybrid_shard shard=8"
    tight = choose(pair, SIZES, lambda degrees: STEP, machine(2.6, ranks=16))
    assert tight.chosen is not None and tight.chosen.candidate.name == "fsdp_full_shard"


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        ("ddp", 2 * 4 * 10**9),
        ("fsdp_full_shard", 3 * 4 * 10**9 * 2),  # every micro-batch
        ("fsdp_shard_grad_op", 2 * 4 * 10**9 * 2),
        ("zero2", (2 + 1) * 4 * 10**9),  # gathers once, reduces every micro-batch
        ("tp", 2 * (4 * 10 + 2) * 2 * 100 * 1000 * 4),
    ],
)
def test_traffic_of_the_papers(name: str, bytes_: float) -> None:
    within, across = traffic_bytes(candidate(name, 8), SIZES, STEP, machine(80))
    assert (within, across) == (pytest.approx(7 / 8 * bytes_), 0)
    within, across = traffic_bytes(candidate(name, 8), SIZES, STEP, machine(80, per_node=4))
    assert (within, across) == (0, pytest.approx(7 / 8 * bytes_))


def test_choices_of_degrees() -> None:
    one, node, nodes = machine(80, 1), machine(80), machine(80, 16)
    cpu = replace(node, accelerator=False)
    assert list(degree_choices("single", one)) == [{}] and not list(degree_choices("ddp", one))
    assert list(degree_choices("dp_tp", node)) == [{"tensor": 2}, {"tensor": 4}]
    assert {"tensor": 8} in degree_choices("dp_tp", nodes) and {"tensor": 16} not in degree_choices("dp_tp", nodes)
    assert list(degree_choices("fsdp_hybrid_shard", nodes)) == [{"shard": 8}]
    assert list(degree_choices("3d_zero1", node)) == [{"pipeline": 2, "tensor": 2}]
    for name, there, words in (
        ("single", node, "there are 8"),
        ("fsdp_hybrid_shard", node, "there is one node"),
        ("tp", nodes, "across nodes"),
        ("fsdp_offload", cpu, "no accelerator"),
        ("zero3_nvme", node, "nvme_path"),
    ):
        assert not list(degree_choices(name, there)) and words in no_degrees(name, there)


def test_every_degree_can_be_laid_out() -> None:
    """The proposed degrees divide the number of ranks."""
    for ranks in (2, 6, 8, 24, 64):
        for name in ("dp_tp", "dp_pp", "3d", "3d_zero1", "fsdp_hybrid_shard"):
            for changes in degree_choices(name, machine(80, ranks)):
                fixed = Degrees(**changes).world_size
                assert ranks % fixed == 0 and fixed < ranks
