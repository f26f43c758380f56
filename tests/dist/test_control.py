"""Tests of epochs that a callback ends early, of options for evaluations and predictions, and of ``data.seed``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import STDLIB, TINY, tiny_recipe
from trireme.configs.schema import read_recipe
from trireme.errors import Problem, UserError
from trireme.launch.compose import compose
from trireme.trainer.build import train
from trireme.trainer.evaluate_only import evaluate
from trireme.trainer.predict_only import predict

PASSES = (
    f"data.source.roots=[{STDLIB}/json]",
    "trainer.max_steps=null",
    "trainer.epochs=3",
    "trainer.global_batch_size=64",
    "trainer.micro_batch_size=32",
)
END = ("+callbacks.end._target_=helpers.callbacks.EndPass", "+callbacks.end.rank=1")
OFTEN = ("trainer.log_every=1", "trainer.eval_every=epoch", "checkpoint.every=epoch")


def _train(run_dir: Path, *overrides: str) -> str:
    try:
        train(tiny_recipe(run_dir, *overrides))
    except UserError as error:
        return str(error)
    return ""


def _ended(run_dir: Path, *overrides: str) -> str:
    steps = "+callbacks.end.steps=[2,5]"
    return _train(run_dir, "plan=ddp", *PASSES, *OFTEN, *END, steps, *overrides)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ended")
    assert kept_ranks(_ended, 2, folder) == ["", ""]
    return folder


def test_a_pass_can_be_ended(ended: Path) -> None:
    """The end of a pass is evaluated and saved as usual, the next one begins at its start, and the run is shorter."""
    steps = training(ended)
    assert [line["epoch"] for line in steps if line["step"] in (2, 5)] == [1.0, 2.0]
    evaluated = [line["step"] for line in lines(ended) if "eval_loss" in line]
    assert evaluated[:2] == [2, 5]
    saved = sorted(int(path.name[5:]) for path in (ended / "checkpoints").glob("step_*"))
    assert saved[-1] == steps[-1]["step"] == evaluated[-1]
    pass_steps = steps[-1]["step"] - 5
    assert pass_steps > 5 and steps[-1]["epoch"] >= 3 > steps[-2]["epoch"]


def test_a_pass_after_ended_ones_has_its_usual_samples(ended: Path, tmp_path: Path) -> None:
    """After two passes that end early, the third pass has the same samples as in a run that jumps to it."""
    other = ("+callbacks.seen._target_=helpers.callbacks.SeenTokens",)
    assert kept_ranks(_ended, 2, tmp_path / "seen", *other) == ["", ""]
    jump = ("+callbacks.jump._target_=helpers.callbacks.Jump", f"+callbacks.jump.samples={_size(ended)}")
    options = (
        "plan=ddp",
        *PASSES,
        *other,
        *jump,
        "trainer.stop_at=3",
        "trainer.log_every=1",
        "checkpoint.at_end=false",
    )
    assert kept_ranks(_train, 2, tmp_path / "jumped", *options) == ["", ""]
    ends = [line["seen"] for line in training(tmp_path / "seen")][2:5]
    assert ends == [line["seen"] for line in training(tmp_path / "jumped")]


def _size(run_dir: Path) -> int:
    """Number of samples in a pass."""
    state = json.loads((run_dir / "checkpoints" / _newest(run_dir) / "state.json").read_text())["trainer"]
    steps = training(run_dir)
    return round(state["samples"] / steps[-1]["epoch"])


def _newest(run_dir: Path) -> str:
    return max(path.name for path in (run_dir / "checkpoints").glob("step_*"))


def test_a_resume_goes_on_in_the_shortened_run(ended: Path, tmp_path: Path) -> None:
    assert kept_ranks(_ended, 2, tmp_path, "trainer.stop_at=4") == ["", ""]
    assert kept_ranks(_ended, 2, tmp_path) == ["", ""]
    assert worst_difference(training(ended), training(tmp_path), ("loss", "grad_norm", "lr", "epoch")) == 0
    assert kept_ranks(_ended, 2, tmp_path) == ["", ""]  # nothing is left to train
    assert len(training(tmp_path)) == len(training(ended))


def test_a_stream_has_no_pass_to_end(tmp_path: Path) -> None:
    stream = ("data=files_streaming", f"data.source.paths=[{STDLIB}/json/*.py]", "data.source.format=txt")
    stream += ("data.tokenizer.vocab_size=512", "data.block_size=32", "data.tokenizer.sample_documents=4")
    for said in kept_ranks(_train, 2, tmp_path, "plan=ddp", *END, "+callbacks.end.steps=[2]", *stream):
        assert "asks to end a pass" in said and "data.streaming=false" in said


def _loss(run_dir: Path) -> float:
    return next(line["eval_loss"] for line in lines(run_dir) if "eval_loss" in line)


@pytest.mark.parametrize(("ranks", "plan"), [(1, "single"), (2, "ddp"), (2, "tp")])
def test_evaluations_in_another_precision(ranks: int, plan: str, tmp_path: Path) -> None:
    """A bf16 run that evaluates in fp32 logs the loss of ``evaluate`` in fp32, and its training lines do not change."""
    options = (f"plan={plan}", "trainer.max_steps=2", "plan.precision=bf16")
    assert kept_ranks(_train, ranks, tmp_path / "whole", *options, "trainer.eval_precision=fp32") == [""] * ranks
    assert kept_ranks(_train, ranks, tmp_path / "usual", *options) == [""] * ranks
    whole, usual = _loss(tmp_path / "whole"), _loss(tmp_path / "usual")
    assert training(tmp_path / "whole") == training(tmp_path / "usual")
    recipe = tiny_recipe(tmp_path / "whole", "plan=single", "plan.precision=fp32", "trainer.max_steps=2")
    assert evaluate(recipe)["eval_loss"] == pytest.approx(whole, rel=1e-6)
    assert abs(whole - usual) > 1e-6


@pytest.mark.parametrize(("ranks", "plan"), [(1, "single"), (2, "fsdp_full_shard"), (2, "tp")])
def test_evaluations_with_weights_in_bf16(ranks: int, plan: str, tmp_path: Path) -> None:
    assert _train(tmp_path, "trainer.max_steps=2") == ""
    exact = evaluate(tiny_recipe(tmp_path, "trainer.max_steps=2"))["eval_loss"]
    for rounded in kept_ranks(_rounded, ranks, tmp_path, plan):
        assert 1e-7 < abs(rounded / exact - 1) < 1e-2


def _rounded(run_dir: Path, plan: str) -> float:
    recipe = tiny_recipe(run_dir, f"plan={plan}", "trainer.max_steps=2", "trainer.eval_weights=bf16")
    return evaluate(recipe)["eval_loss"]


@pytest.mark.parametrize(
    ("overrides", "field", "why"),
    [
        (("plan=zero2", "trainer.eval_precision=bf16"), "trainer.eval_precision", "DeepSpeed's engine"),
        (("plan=pp_1f1b", "trainer.eval_precision=bf16"), "trainer.eval_precision", "stages of plan pp_1f1b"),
        (
            ("plan=fsdp_full_shard", "plan.precision=bf16", "trainer.eval_precision=fp32"),
            "trainer.eval_precision",
            "FSDP gathers weights in bf16",
        ),
        (("plan=zero3", "trainer.eval_weights=bf16"), "trainer.eval_weights", "DeepSpeed's engine"),
    ],
)
def test_options_that_a_plan_does_not_support_are_refused(overrides: tuple[str, ...], field: str, why: str) -> None:
    _, problems = read_recipe(compose(str(TINY), list(overrides)).raw, lambda plan: 2)
    found = {problem.field: problem for problem in problems if isinstance(problem, Problem)}
    assert why in found[field].why


def test_predictions_at_the_end(tmp_path: Path) -> None:
    """On two ranks, the callback writes the file that ``predict`` writes, and ``on_predict`` gets the metrics."""
    callbacks = (
        "callbacks=[minimal,predictions]",
        "+callbacks.note._target_=helpers.callbacks.Predicted",
        f"+callbacks.note.path={tmp_path}/metrics",
    )
    assert kept_ranks(_train, 2, tmp_path / "run", "plan=ddp", "trainer.max_steps=2", *callbacks) == ["", ""]
    recipe = tiny_recipe(tmp_path / "run", "trainer.max_steps=2")
    found = predict(recipe, str(tmp_path / "command.jsonl"))
    noted = [json.loads((tmp_path / f"metrics.{rank}").read_text()) for rank in (0, 1)]
    assert noted[0] == noted[1] and noted[0]["eval_loss"] == pytest.approx(found["eval_loss"], rel=1e-6)
    one, other = (tmp_path / "run" / "predictions.jsonl").read_text(), (tmp_path / "command.jsonl").read_text()
    assert one == other and one.count("\n") > 20


def test_evaluations_have_a_micro_batch_of_their_own(tmp_path: Path) -> None:
    """Metrics do not depend on its size, even if the size is odd or exceeds the number of samples."""
    usual = _loss_with_micro_batch(tmp_path / "usual", "null")
    for size in ("3", "40"):
        assert _loss_with_micro_batch(tmp_path / size, size) == pytest.approx(usual, rel=1e-6)
    ranks = kept_ranks(_loss_with_micro_batch, 2, tmp_path / "ranks", "3", "plan=ddp")
    assert ranks[0] == ranks[1] == pytest.approx(usual, rel=1e-5)


def _loss_with_micro_batch(run_dir: Path, size: str, *overrides: str) -> float:
    assert _train(run_dir, "trainer.max_steps=1", f"trainer.eval_micro_batch_size={size}", *overrides) == ""
    return _loss(run_dir)


def test_the_data_has_a_seed_of_its_own(tmp_path: Path) -> None:
    """``data.seed`` alone sets the order of the samples, and ``seed`` then sets the initial weights."""
    seen = (
        "+callbacks.seen._target_=helpers.callbacks.SeenTokens",
        "trainer.max_steps=2",
        "trainer.eval_on_start=true",
    )
    for name, seeds in (("one", ()), ("weights", ("seed=9", "data.seed=7")), ("data", ("data.seed=9",))):
        assert _train(tmp_path / name, *seen, *seeds) == ""
    one, weights, data = (lines(tmp_path / name) for name in ("one", "weights", "data"))
    first = [next(line["eval_loss"] for line in run if "eval_loss" in line) for run in (one, weights, data)]
    order = [[line["seen"] for line in run if "seen" in line] for run in (one, weights, data)]
    assert first[0] == first[2] != first[1]
    assert order[0] == order[1] != order[2]
