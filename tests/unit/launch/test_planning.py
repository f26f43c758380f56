"""Tests of ``plan=auto``, which chooses a parallelism plan that fits into memory. The planner decides for simulated
machines, and the real command trains and compares plans on this one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from helpers.command import ROOTS, refused, tiny_command, trireme_here
from helpers.recipes import TINY, tiny_recipe
from trireme.errors import UserError
from trireme.launch.compose import compose
from trireme.launch.composed import Composed
from trireme.launch.planning import Planner, in_a_fork, own_options, planned
from trireme.launch.train import checked
from trireme.parallel.planner import GIB, RUNGS, Decision, Machine

PLANS = {path.stem for path in (Path(__file__).parents[3] / "configs" / "plan").glob("*.yaml")}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def decide(tmp_path: Path, model: str, ranks: int, gib: float, batch: int = 256, **own: object) -> Decision:
    """The planner's decision for bf16 and sequences of 4096 on nodes of 8 ranks with 128 GiB of CPU memory each."""
    sizes = ["data.block_size=4096", f"trainer.global_batch_size={batch}", "trainer.micro_batch_size=1"]
    recipe = tiny_recipe(tmp_path, f"model={model}", "model.config.vocab_size=32000", *sizes)
    planner = Planner(recipe, {"precision": "bf16", **own})
    machine = Machine(ranks, 8, gib * GIB, 128 * GIB)
    decision = planner.decide(machine)
    if decision.chosen is None:
        raise UserError(planner.nothing_fits(decision, machine))
    return decision


def name(decision: Decision) -> str:
    assert decision.chosen is not None
    return decision.chosen.candidate.name


def verdicts(decision: Decision) -> dict[str, str]:
    return {one.candidate.plan.name: one.verdict for one in decision.others}


def plan_auto(*overrides: str, nproc: int | None = None) -> Composed:
    return planned(compose(str(TINY), ["plan=auto", *overrides]), nproc)


def test_every_plan_is_considered() -> None:
    assert PLANS - {"auto"} == {plan for _, plans in RUNGS for plan in plans}


def test_llama_7b_on_eight_large_devices_shards_optimizer_state(tmp_path: Path) -> None:
    decision = decide(tmp_path, "llama2_7b", 8, 80)
    assert name(decision) == "fsdp_shard_grad_op"
    said = verdicts(decision)
    assert said["ddp"].startswith("needs 1") and said["ddp"].endswith("of 72 GiB per rank")  # 18 bytes x 6.7e9
    assert said["single"] == "is for one process, and there are 8"
    assert "not needed" in said["fsdp_full_shard"] and "not needed" in said["fsdp_offload"]


def test_llama_7b_on_eight_small_devices_shards_parameters_once_activations_are_recomputed(tmp_path: Path) -> None:
    assert name(decide(tmp_path, "llama2_7b", 8, 24, recompute="full")) == "fsdp_full_shard"
    decision = decide(tmp_path, "llama2_7b", 8, 24)  # all activations beside a shard of the states: too much
    assert name(decision) == "tp"
    assert verdicts(decision)["fsdp_full_shard"].startswith("needs")


def test_llama_70b_on_eight_nodes(tmp_path: Path) -> None:
    assert name(decide(tmp_path, "llama2_70b", 64, 80, recompute="full")) == "fsdp_full_shard"
    decision = decide(tmp_path, "llama2_70b", 64, 80)
    assert decision.chosen is not None and decision.chosen.candidate.plan.name == "3d_zero1"
    assert decision.chosen.candidate.degrees.tensor <= 8
    assert "across nodes" in verdicts(decision)["tp"]


def test_a_small_model_is_copied_and_heads_must_divide(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "model=gpt2", "trainer.global_batch_size=64", "trainer.micro_batch_size=2")
    decision = Planner(recipe, {}).decide(Machine(8, 8, 80 * GIB, 128 * GIB))
    assert name(decision) == "ddp"
    assert "n_head=12 does not divide over 8 ranks" in verdicts(decision)["tp"]


def test_nothing_fits_is_one_problem_with_what_would(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        decide(tmp_path, "llama2_7b", 2, 8)
    (problem,) = caught.value.problems
    assert "finds no plan that fits into 7.2 GiB per rank; the smallest, zero3_offload needs 22 GiB" in str(problem)
    assert str(problem).endswith("any of these would fit: plan.recompute=full")
    with pytest.raises(UserError, match=r"would fit: \d+ ranks"):
        decide(tmp_path, "llama2_70b", 8, 80)


def test_resolves_and_ranks_compose_the_same() -> None:
    assert plan_auto().raw["plan"]["name"] == "single"
    for nproc, options in ((2, []), (2, ["plan.precision=bf16", "plan.ddp.bucket_cap_mb=5"]), (4, ["plan.tensor=2"])):
        resolved = plan_auto(*options, nproc=nproc)
        again = compose(str(resolved.recipe), resolved.overrides)
        assert again.raw == resolved.raw and "plan=auto" not in resolved.overrides
        recipe, ranks = checked(resolved, nproc)
        assert ranks == nproc and recipe.plan.name == {2: "ddp", 4: "dp_tp"}[nproc]


def test_options_of_the_recipe_are_kept_and_exclude_plans() -> None:
    composed = compose(str(TINY), ["plan=auto", "plan.precision=bf16", "plan.replicate=2"])
    assert own_options(composed) == {"precision": "bf16", "replicate": 2}
    assert plan_auto("plan.data_parallel=fsdp", nproc=2).raw["plan"]["name"] == "fsdp_no_shard"
    assert (
        plan_auto("plan.fsdp.forward_prefetch=1", "plan.shard=2", nproc=2).raw["plan"]["name"] == "fsdp_shard_grad_op"
    )
    assert plan_auto("plan.pipelining.schedule=gpipe", nproc=2).raw["plan"]["name"] == "pp_gpipe"


def test_a_batch_that_data_ranks_cannot_share_is_split_otherwise() -> None:
    """With one sample per step, both ranks must work on the same sample."""
    sizes = ["trainer.global_batch_size=1", "trainer.micro_batch_size=1"]
    resolved = plan_auto(*sizes, nproc=2)
    assert resolved.raw["plan"]["name"] in ("tp", "tp_sp")


def test_a_launcher_sets_the_size_and_other_ranks_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    names = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        names.append(plan_auto().raw["plan"]["name"])
        assert bool(capsys.readouterr().out) == (rank == "0")
    assert names == ["ddp", "ddp"]


def test_problems_of_the_recipe_come_first() -> None:
    with pytest.raises(UserError) as caught:
        plan_auto("plan.precison=bf16", "trainer.max_step=3", "plan.tensor=2", nproc=2)
    assert {problem.field for problem in caught.value.problems if not isinstance(problem, str)} == {
        "plan.precison",
        "trainer.max_step",
    }
    with pytest.raises(UserError, match="write plan=zero2"):
        plan_auto("plan.deepspeed=ds.json", nproc=2)
    with pytest.raises(UserError, match="no plan that can run"):
        plan_auto("plan.tensor=3", nproc=2)


def test_what_would_wake_the_driver_is_asked_in_a_fork() -> None:
    assert in_a_fork(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="not a number"):
        in_a_fork(_fails)


def _fails() -> None:
    raise ValueError("not a number")


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = ["plan=auto", "trainer.max_steps=2", "--nproc", "2"]
    result = subprocess.run(tiny_command(run_dir, *arguments), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("chosen") == 1 and "plan ddp on 2 processes" in result.stdout
    assert yaml.safe_load((run_dir / "recipe.yaml").read_text())["plan"]["name"] == "ddp"


def test_commands_compare_and_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    compared = trireme_here(capsys, "plans", str(TINY), ROOTS, "plan=ddp", "--nproc", "2")
    assert compared.returncode == 0 and "plan ddp on 2 processes" in compared.stdout, compared.stderr
    lines = compared.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines[:-1]), "each verdict stands on lines of its own"
    assert lines[lines.index("    chosen") - 1].startswith("ddp ") and "MiB" in lines[lines.index("    chosen") - 1]
    impossible = trireme_here(capsys, "check", str(TINY), ROOTS, "plan=auto", "plan.tensor=3", "--nproc", "2")
    refused(impossible, "no plan that can run")
