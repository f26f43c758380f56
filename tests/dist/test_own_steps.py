"""Custom tasks that call the model in their own ``step`` give the same losses under DDP, FSDP and ZeRO plans.

Pipeline plans refuse such tasks, since no rank of a pipeline holds the whole model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import TINY, tiny_recipe
from trireme.configs.schema import read_recipe
from trireme.errors import UserError
from trireme.launch.compose import compose
from trireme.trainer.build import train

STEPS = ("trainer.max_steps=3", "trainer.eval_every=3", "checkpoint.at_end=false", "trainer.log_every=1")
DROPOUT = "model.config.hidden_dropout=0.1"


def _train(run_dir: Path, task: str, *overrides: str) -> str:
    try:
        train(tiny_recipe(run_dir, f"task._target_=helpers.tasks.{task}", *STEPS, *overrides))
    except UserError as error:
        return str(error)
    return ""


def _evaluated(run_dir: Path) -> float:
    return next(line["eval_loss"] for line in lines(run_dir) if "eval_loss" in line)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for task in ("TwoPasses", "OneCall", "CausalLM"):
        options = ("task._target_=trireme.trainer.tasks.causal_lm.CausalLM",) if task == "CausalLM" else ()
        assert kept_ranks(_train, 1, folder / task, task, DROPOUT, *options) == [""]
    return folder


def test_a_step_with_one_call_equals_the_usual_loss(alone: Path) -> None:
    assert worst_difference(training(alone / "CausalLM"), training(alone / "OneCall")) == 0
    assert _evaluated(alone / "CausalLM") == _evaluated(alone / "OneCall")


def test_two_passes_have_different_dropout(alone: Path) -> None:
    """With dropout, the two passes differ, so their distance adds to the loss; evaluations use the task's own step."""
    once, twice = training(alone / "OneCall"), training(alone / "TwoPasses")
    assert all(other["loss"] > one["loss"] + 1e-4 for one, other in zip(once, twice, strict=True))
    assert abs(_evaluated(alone / "OneCall") - _evaluated(alone / "TwoPasses")) > 1e-4


@pytest.mark.parametrize("plan", ["ddp", "fsdp_full_shard", "zero2", "zero3"])
def test_losses_are_the_same_under_every_plan(plan: str, alone: Path, tmp_path: Path) -> None:
    assert kept_ranks(_train, 2, tmp_path, "TwoPasses", DROPOUT, f"plan={plan}") == ["", ""]
    assert worst_difference(training(alone / "TwoPasses"), training(tmp_path)) < 2e-5
    assert abs(_evaluated(alone / "TwoPasses") / _evaluated(tmp_path) - 1) < 1e-5


@pytest.mark.parametrize(("ranks", "plan"), [(1, "single"), (2, "fsdp_full_shard")])
def test_a_mean_is_refused(ranks: int, plan: str, tmp_path: Path) -> None:
    for said in kept_ranks(_train, ranks, tmp_path, "MeanStep", f"plan={plan}"):
        assert "helpers.tasks.MeanStep.step returns a mean" in said


def test_a_pipeline_is_refused_by_name() -> None:
    composed = compose(str(TINY), ["task._target_=helpers.tasks.TwoPasses", "plan=pp_1f1b"])
    _, problems = read_recipe(composed.raw, lambda plan: 2)
    assert [problem.field for problem in problems] == ["task"]
    assert "calls the model itself (evaluation_step, step)" in problems[0].why and "pp_1f1b" in problems[0].why
