"""Tests of the training loop: agreement between ranks, callback events, epochs, evaluation, precision, averaged weights
(EMA), streaming data, recomputation and compilation.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.micro_batches import loss_of
from helpers.options import witnesses
from helpers.recipes import FEW_FILES, tiny_recipe
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train


def _train(run_dir: Path, *overrides: str) -> int:
    return train(tiny_recipe(run_dir, *overrides)).step


def test_what_one_rank_asks_for_all_ranks_do(tmp_path: Path) -> None:
    stop = [
        "+callbacks.stop._target_=helpers.callbacks.StopOnOneRank",
        "+callbacks.stop.rank=1",
        "+callbacks.stop.step=4",
    ]
    assert kept_ranks(_train, 2, tmp_path, "plan=ddp", *stop) == [4, 4]
    assert (tmp_path / "checkpoints" / "step_00000004" / "manifest.json").exists()


def test_events_come_in_order_on_every_rank(tmp_path: Path) -> None:
    recorder = [
        "+callbacks.recorder._target_=helpers.callbacks.Recorder",
        f"+callbacks.recorder.path={tmp_path}/seen",
        "trainer.max_steps=2",
        "trainer.log_every=2",
        "checkpoint.every=2",
    ]
    kept_ranks(_train, 2, tmp_path / "run", "plan=ddp", *recorder)
    expected = [
        "init_end 0",
        "train_begin 0",
        "epoch_begin 0",
        "step_begin 0",
        "substep_end 0",
        "substep_end 0",
        "pre_optimizer_step 0",
        "optimizer_step 0",
        "step_end 1",
        "log 1",
        "step_begin 1",
        "substep_end 1",
        "substep_end 1",
        "pre_optimizer_step 1",
        "optimizer_step 1",
        "step_end 2",
        "log 2",
        *["prediction_step 2"] * 4,
        "evaluate 2",
        "log 2",
        "pre_save 2",
        "save 2",
        "train_end 2",
    ]
    for rank in (0, 1):
        assert (tmp_path / f"seen.{rank}").read_text().split("\n") == expected


def test_epochs_end_where_the_data_does(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("".join(f"line {number}\n" for number in range(50)))
    overrides = [
        "data=files",
        f"data.source.paths=[{tmp_path}/text.txt]",
        "data.source.split_text=line",
        "data.packing=false",
        "data.held_out=0",
        "trainer.max_steps=null",
        "trainer.epochs=2",
        "trainer.eval_samples=null",
        "+callbacks.recorder._target_=helpers.callbacks.Recorder",
        f"+callbacks.recorder.path={tmp_path}/seen",
    ]
    _train(tmp_path / "run", *overrides)
    seen = (tmp_path / "seen.0").read_text().split("\n")
    assert [event for event in seen if event.startswith("epoch")] == [
        "epoch_begin 0",
        "epoch_end 7",
        "epoch_begin 7",
        "epoch_end 13",
    ]
    assert training(tmp_path / "run")[-1]["epoch"] == pytest.approx(104 / 50)


def test_a_callbacks_own_state_survives(tmp_path: Path) -> None:
    remember = ["+callbacks.remember._target_=helpers.callbacks.Remember"]
    _train(tmp_path, *remember, "trainer.stop_at=4")
    _train(tmp_path, *remember)
    assert [line["remembered"] for line in training(tmp_path)] == list(range(1, 11))


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-2), ("fp16", 5e-3)])
def test_mixed_precision_follows_fp32(tmp_path: Path, precision: str, tolerance: float) -> None:
    _train(tmp_path / "fp32")
    _train(tmp_path / precision, f"plan.precision={precision}")
    whole, mixed = (
        training(tmp_path / "fp32"),
        [line for line in training(tmp_path / precision) if not line.get("skipped")],
    )
    assert 0 < worst_difference(whole[:1], mixed[:1], ["loss"]) < tolerance
    assert mixed[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=tolerance)
    weights = build(tiny_recipe(tmp_path / precision), build_mesh(tiny_recipe(tmp_path).plan), resume="auto").strategy
    assert all(tensor.dtype == torch.float32 for tensor in weights.saved_tensors().values())


def test_two_ranks_in_bf16_stay_together(tmp_path: Path) -> None:
    _train(tmp_path / "one", "plan.precision=bf16")
    kept_ranks(_train, 2, tmp_path / "two", "plan=ddp", "plan.precision=bf16")
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two"), ["loss"]) < 1e-3


def test_an_overflow_skips_the_step_and_lowers_the_scale(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "plan.precision=fp16")
    trainer = build(recipe, build_mesh(recipe.plan))
    strategy = trainer.strategy
    strategy.scale.value = 2.0**140
    before = {name: tensor.clone() for name, tensor in strategy.saved_tensors().items()}
    batch = next(iter(trainer.corpus.train_batches({}, 0, 1)))
    strategy.forward_backward(batch, loss_of(trainer.task))
    assert strategy.optimizer_step(1.0, 1.0).skipped
    assert all(torch.equal(tensor, before[name]) for name, tensor in strategy.saved_tensors().items())
    assert strategy.scale.value == 2.0**139


def test_averaged_weights_follow_the_formula(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "+ema.decay=0.75", "trainer.max_steps=3")
    trainer = build(recipe, build_mesh(recipe.plan))
    expected = {name.removeprefix("ema."): t.clone() for name, t in trainer.ema.saved_tensors().items()}
    live = dict(trainer.strategy.named_parameters())
    for batch in trainer.corpus.train_batches({}, 0, 3):
        trainer.strategy.forward_backward(batch, loss_of(trainer.task))
        trainer.strategy.optimizer_step(1.0, 1.0)
        trainer.ema.update()
        for name, average in expected.items():
            average.mul_(0.75).add_(live[name].detach(), alpha=0.25)
    for name, average in trainer.ema.saved_tensors().items():
        torch.testing.assert_close(average, expected[name.removeprefix("ema.")])
    before = {name: parameter.detach().clone() for name, parameter in live.items()}
    with trainer.ema.in_place():
        assert any(not torch.equal(live[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(live[name], tensor) for name, tensor in before.items())


def test_evaluation_counts_every_sample_once_on_any_number_of_ranks(tmp_path: Path) -> None:
    overrides = ["trainer.max_steps=1", "trainer.eval_samples=13", "optimizer.lr=0"]
    _train(tmp_path / "one", *overrides)
    kept_ranks(_train, 2, tmp_path / "two", "plan=ddp", *overrides)
    one, two = (next(line for line in lines(tmp_path / name) if "eval_loss" in line) for name in ("one", "two"))
    assert (
        one["eval_loss"] == pytest.approx(two["eval_loss"], rel=1e-6) and one["eval_accuracy"] == two["eval_accuracy"]
    )
    assert one["eval_perplexity"] == pytest.approx(math.exp(one["eval_loss"]))


def test_a_stream_resumes_exactly_and_on_more_ranks(tmp_path: Path) -> None:
    files = ",".join(f"{folder}/*.py" for folder in FEW_FILES)
    overrides = [
        "data=files_streaming",
        f"data.source.paths=[{files}]",
        "data.tokenizer.sample_documents=20",
        "data.source.format=txt",
        "data.shuffle_window=64",
    ]
    _train(tmp_path / "whole", *overrides)
    _train(tmp_path / "parts", *overrides, "trainer.stop_at=4")
    kept_ranks(_train, 2, tmp_path / "more", "plan=ddp", *overrides, "trainer.stop_at=4")
    _train(tmp_path / "parts", *overrides)
    _train(tmp_path / "more", *overrides)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert worst_difference(training(tmp_path / "whole"), training(tmp_path / "more")) < 1e-5


@pytest.mark.parametrize("how", ["full", "selective"])
def test_blocks_are_recomputed_in_training_alone(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (calls,) = witnesses(monkeypatch, f"plan.recompute={how}")
    _train(tmp_path / "kept", "trainer.max_steps=1")
    assert calls.value == 0
    _train(tmp_path / "recomputed", "trainer.max_steps=1", f"plan.recompute={how}")
    assert calls.value == 4 * 4, "blocks x micro-batches; the evaluation at the end has no backward"
    assert worst_difference(training(tmp_path / "kept"), training(tmp_path / "recomputed")) < 1e-5


@pytest.mark.slow
def test_compiled_blocks_follow_the_trajectory(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    _train(tmp_path / "plain", "trainer.max_steps=3", "trainer.eval_at_end=false")
    torch._dynamo.reset()  # forget graphs that another test has compiled
    counters.clear()
    _train(tmp_path / "compiled", "trainer.max_steps=3", "trainer.eval_at_end=false", "plan.compile=true")
    assert counters["stats"]["unique_graphs"] > 0
    assert worst_difference(training(tmp_path / "plain"), training(tmp_path / "compiled")) < 1e-4


FIFTY_LINES = [
    "data=files",
    "data.source.split_text=line",
    "data.packing=false",
    "data.held_out=0.2",
    "trainer.eval_samples=null",
    "trainer.max_steps=null",
    "trainer.epochs=3",
]


def _fifty_lines(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("".join(f"line {number}\n" for number in range(50)))
    return [*FIFTY_LINES, f"data.source.paths=[{tmp_path}/text.txt]"]


def test_log_evaluate_and_save_at_the_end_of_each_pass(tmp_path: Path) -> None:
    each_pass = [f"{key}=epoch" for key in ("trainer.log_every", "trainer.eval_every", "checkpoint.every")]
    kept = ["checkpoint.keep_last=null", "trainer.eval_delay=2"]
    steps = _train(tmp_path / "run", *_fifty_lines(tmp_path), *each_pass, *kept)
    ends = _ends_of_passes(lines(tmp_path / "run"), steps)
    assert [line["step"] for line in training(tmp_path / "run")] == [1, *ends]
    evaluated = [line["step"] for line in lines(tmp_path / "run") if "eval_loss" in line]
    assert evaluated == ends[1:], "the first pass is within eval_delay"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")) == [
        f"step_{step:08}" for step in ends
    ]


def _ends_of_passes(written: list[dict], steps: int) -> list[int]:
    """First steps at which 1, 2 and 3 passes are done, computed from the share of a pass that one step covers."""
    share = next(line["epoch"] for line in written if line["step"] == 1)
    return [next(step for step in range(1, steps + 1) if step * share >= passes - 1e-9) for passes in (1, 2, 3)]


def test_evaluate_before_the_first_step(tmp_path: Path) -> None:
    _train(tmp_path, "trainer.eval_on_start=true", "trainer.max_steps=2")
    evaluated = [line for line in lines(tmp_path) if "eval_loss" in line]
    assert [line["step"] for line in evaluated] == [0, 2]
    assert evaluated[0]["eval_loss"] > evaluated[1]["eval_loss"]


def test_callbacks_read_earlier_lines_and_can_be_added_and_removed(tmp_path: Path) -> None:
    """On every rank and after a resume, callbacks find the lines so far, the FLOP count and the best checkpoint."""
    looks = [
        "plan=ddp",
        "callbacks=[minimal,best_model]",
        "+callbacks.looks._target_=helpers.callbacks.LooksBack",
        f"+callbacks.looks.path={tmp_path}/seen",
        "trainer.eval_every=2",
    ]
    kept_ranks(_train, 2, tmp_path / "run", *looks, "trainer.stop_at=4")
    kept_ranks(_train, 2, tmp_path / "run", *looks, "trainer.max_steps=6")
    written = lines(tmp_path / "run")
    best = min((line["eval_loss"], line["step"]) for line in written if "eval_loss" in line)[1]
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"seen.{rank}").read_text())
        assert [line["step"] for line in seen["lines"]] == [line["step"] for line in written]
        assert seen["flops"] > 0 and seen["best"] == f"step_{best:08}"
        assert seen["guest"] == [5], "it came with step 5 and left before step 6"
