"""Tests of a Transformer-XL whose memory is carried from step to step (``data.packing=lanes``).

Losses are the same under every parallelism plan, after a resume, and on another number of ranks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.command import trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import TINY, tiny_recipe
from helpers.several_runs import Job, train_all
from helpers.zero import load_deepspeed
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.checkpoint.layout import step_folder
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint
from trireme.trainer.evaluate_only import evaluate

STEPS, SAVED, TOLERANCE = 20, 9, 1e-4
XL = [
    *("model=transformer_xl_tiny", "data.packing=lanes", "data.tokenizer.kind=words", "data.block_size=16"),
    *(f"trainer.max_steps={STEPS}", "trainer.global_batch_size=4", "trainer.eval_samples=24"),
    "model.config.dropout=0.1",
]
"""Four lanes: two for each of two ranks. Dropout is on, so that memories hold noise that no plan may change."""
PLANS = (
    *("ddp", "fsdp_full_shard"),
    # tests/dist/test_shapes.py has zero3, without dropout.
    *(pytest.param(plan, marks=pytest.mark.long) for plan in ("zero1", "zero2", "zero3")),
)


def job(run_dir: Path, *overrides: str) -> Job:
    return TINY, run_dir, [*XL, *overrides]


def tensors(run_dir: Path, step: int, prefix: str = "") -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, whole."""
    source = Checkpoint(step_folder(run_dir / "checkpoints", step))
    found = {name: torch.empty(*source.shapes[name][:1], dtype=source.shapes[name][1]) for name in source.shapes}
    found = {name: tensor for name, tensor in found.items() if name.startswith(prefix)}
    source.read(found)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, all lanes in one micro-batch, with a checkpoint on the way and one at the end."""
    folder = tmp_path_factory.mktemp("lanes") / "alone"
    train_all([job(folder, "trainer.micro_batch_size=4", f"checkpoint.every={SAVED}", "checkpoint.at_end=true")])
    return folder


def test_the_memory_is_used_and_saved_by_lane(alone: Path, tmp_path: Path) -> None:
    train_all([job(tmp_path / "none", "trainer.micro_batch_size=4", "model.config.mem_len=0")])
    one, other = training(alone), training(tmp_path / "none")
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-6)  # there is nothing to remember yet
    assert one[2]["loss"] != pytest.approx(other[2]["loss"], rel=1e-5)
    kept = tensors(alone, STEPS, "lanes.")
    assert kept["lanes.mems"].shape == (4, 4, 48, 64) and kept["lanes.mem_lengths"].tolist() == [48] * 4
    assert kept["lanes.position"].tolist() == [4 * (STEPS - 1) + lane for lane in range(4)]


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_gives_the_trajectory_of_one_process(plan: str, alone: Path, tmp_path: Path) -> None:
    if plan.startswith("zero"):
        load_deepspeed()
    micro = 1 if plan in ("zero2", "fsdp_full_shard") else 2  # one lane in each of two micro-batches, or both in one
    kept_ranks(train_all, 2, [job(tmp_path, f"plan={plan}", f"trainer.micro_batch_size={micro}")])
    one, many = training(alone), training(tmp_path)
    assert len(one) == len(many) == STEPS and worst_difference(one, many) < TOLERANCE
    evaluated = [next(line for line in lines(run) if "eval_loss" in line) for run in (alone, tmp_path)]
    assert evaluated[0]["eval_loss"] == pytest.approx(evaluated[1]["eval_loss"], rel=TOLERANCE)


@pytest.mark.long
def test_four_ranks_in_two_groups_have_a_lane_each(alone: Path, tmp_path: Path) -> None:
    options = ("plan=fsdp_hybrid_shard", "trainer.micro_batch_size=1", "trainer.stop_at=6", "checkpoint.at_end=true")
    kept_ranks(train_all, 4, [job(tmp_path, *options)])
    assert worst_difference(training(alone)[:6], training(tmp_path)) < TOLERANCE
    train_all([job(tmp_path, "trainer.micro_batch_size=4")])
    assert worst_difference(training(alone), training(tmp_path)) < TOLERANCE


def test_a_resume_in_the_middle_of_a_pass_is_exact(alone: Path, tmp_path: Path) -> None:
    train_all([job(tmp_path, "trainer.micro_batch_size=4", f"trainer.stop_at={SAVED}", "checkpoint.at_end=true")])
    train_all([job(tmp_path, "trainer.micro_batch_size=4", "checkpoint.at_end=true")])
    assert training(tmp_path) == training(alone)
    one, parts = tensors(alone, STEPS), tensors(tmp_path, STEPS)
    assert one.keys() == parts.keys() and all(torch.equal(one[name], parts[name]) for name in one)


def test_a_memory_moves_to_two_ranks_and_back(alone: Path, tmp_path: Path) -> None:
    options = ("trainer.micro_batch_size=2", "checkpoint.at_end=true")
    train_all([job(tmp_path, *options, "trainer.stop_at=5")])
    before = tensors(tmp_path, 5, "lanes.")
    kept_ranks(_saved_again, 2, tmp_path, [*options, "plan=fsdp_full_shard"])
    after = tensors(tmp_path, 5, "lanes.")
    assert len(before) == 3 and all(torch.equal(before[name], after[name]) for name in before)
    kept_ranks(train_all, 2, [job(tmp_path, *options, "plan=ddp", "trainer.stop_at=11")])
    train_all([job(tmp_path, *options)])
    one, many = training(alone), training(tmp_path)
    assert len(many) == STEPS and worst_difference(one, many) < TOLERANCE
    ours, theirs = tensors(alone, STEPS, "lanes."), tensors(tmp_path, STEPS, "lanes.")
    torch.testing.assert_close(theirs["lanes.mems"], ours["lanes.mems"], rtol=1e-3, atol=1e-3)


def _saved_again(run_dir: Path, overrides: list[str]) -> None:
    """Load a checkpoint and write it again."""
    recipe = tiny_recipe(run_dir, *XL, *overrides)
    trainer = build(recipe, build_mesh(recipe.plan), "auto")
    trainer.save(wait=True)
    trainer.mesh.close()


def test_another_number_of_lanes_starts_with_an_empty_memory(alone: Path, tmp_path: Path) -> None:
    train_all([job(tmp_path, "trainer.micro_batch_size=4", "trainer.stop_at=5", "checkpoint.at_end=true")])
    recipe = tiny_recipe(tmp_path, *XL, "trainer.global_batch_size=8", "trainer.micro_batch_size=8")
    trainer = build(recipe, build_mesh(recipe.plan), str(tmp_path))
    assert trainer.state.step == 5
    assert trainer.strategy.lanes is not None and trainer.strategy.lanes.saved_tensors(lambda _, one: one) == {}


def test_an_evaluation_carries_a_memory_of_its_own(alone: Path) -> None:
    """Another memory length gives another loss on the same weights; the run's own length gives the logged loss."""
    found = {}
    for memory in (0, 48):
        recipe = tiny_recipe(alone, *XL, "trainer.micro_batch_size=4", f"model.config.mem_len={memory}")
        found[memory] = evaluate(recipe)["eval_loss"]
    assert found[0] != found[48]
    (line,) = [line for line in lines(alone) if "eval_loss" in line]
    assert found[48] == pytest.approx(line["eval_loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["plan=pp_gpipe", "--nproc", "2"], "needs ranks with the whole model, but plan pp_gpipe cuts"),
        (["plan=tp", "--nproc", "2"], "Transformer-XL has no tensor plan"),
        (["model=llama_tiny"], "is for models that carry a memory from sample to sample, but Llama has no memory"),
        (["data.streaming=true"], "a stream has no length that could be cut into lanes"),
        (["data.group_by_length=true"], "lanes are an order of their own"),
        (["task=sequence_classification"], "this task learns from separate samples"),
    ],
)
def test_options_that_lanes_do_not_support_are_refused(
    overrides: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["model=transformer_xl_tiny", "data.packing=lanes", *overrides]
    found = trireme_here(capsys, "check", str(TINY), f"run.dir={tmp_path}", *options)
    assert found.returncode == 2 and words in " ".join(found.stderr.split()), found.stderr
