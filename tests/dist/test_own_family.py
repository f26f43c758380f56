"""The example models and tasks of ``docs/extending.md`` can be trained on several ranks, resumed, exported and used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trireme
from helpers.command import ROOTS
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.own_code import EXAMPLES, fresh_modules
from helpers.recipes import FEW_FILES, recipe_of
from trireme.launch.cli import main
from trireme.trainer.build import train
from trireme.trainer.evaluate_only import evaluate

PLANS = ["ddp", "zero3", "fsdp_full_shard", "tp", "tp_sp", "pp_1f1b"]
FEW = ("trainer.max_steps=3", "trainer.log_every=1", "scheduler=constant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("examples")
    for name in ("decay", "words", "series"):
        EXAMPLES[name].write(folder)
    with fresh_modules():
        yield folder


def _train(folder: Path, example: str, plan: str) -> None:
    more = [ROOTS] if example == "decay" else []
    train(recipe_of(folder / f"{example}.yaml", folder / f"{example}_{plan}", f"plan={plan}", *FEW, *more))


def _numbers(folder: Path) -> list[dict[str, float]]:
    names = ("step", "loss", "grad_norm", "eval_loss", "eval_accuracy", "eval_lines", "eval_mae")
    return [{name: line[name] for name in names if name in line} for line in lines(folder)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[dict[str, float]]:
    _train(folder, "decay", "single")
    return _numbers(folder / "decay_single")


@pytest.mark.parametrize("plan", PLANS)
def test_a_family_of_ones_own_under_every_plan(folder: Path, alone: list[dict[str, float]], plan: str) -> None:
    kept_ranks(_train, 2, folder, "decay", plan, timeout=240)
    for ours, theirs in zip(_numbers(folder / f"decay_{plan}"), alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_transformers_loads_the_export_of_a_family_of_ones_own(
    folder: Path, alone: list[dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    assert main(["export", str(folder / "decay_single"), str(tmp_path / "out")]) == 0
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model).__name__ == "Decay" and not any(report.values())
    assert main(["generate", str(folder / "decay_single"), "--prompt", "def"]) == 2
    assert "holds a Decay, which has no generate" in capsys.readouterr().err


def test_a_notebook_loads_models_of_every_kind(folder: Path, tmp_path: Path) -> None:
    options = {"trainer.max_steps": 1, "trainer.eval_at_end": False}
    for name, kind, tokens in (
        ("words", "BertForTokenClassification", True),
        ("series", "PatchTSTForPrediction", False),
        ("decay", "Decay", True),
    ):
        roots = {"data.source.roots": FEW_FILES} if name == "decay" else {}
        run = trireme.train(str(folder / f"{name}.yaml"), {**options, **roots, "run.dir": str(tmp_path / name)})
        assert type(run.model).__name__ == kind and (run.tokenizer is not None) == tokens


def _evaluated(folder: Path, plan: str) -> dict[str, Any]:
    recipe = recipe_of(folder / "words.yaml", folder / "words_single", f"plan={plan}", "trainer.eval_samples=45")
    return {name: value for name, value in evaluate(recipe).items() if name != "weights"}


def test_metrics_of_records_are_the_same_on_two_ranks(folder: Path) -> None:
    _train(folder, "words", "single")
    one = _evaluated(folder, "single")
    assert {"eval_loss", "eval_accuracy", "eval_lines"} <= set(one)
    for found in kept_ranks(_evaluated, 2, folder, "ddp"):
        assert found == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
def test_a_modality_of_ones_own_through_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PatchTSTForPrediction

    monkeypatch.chdir(tmp_path)
    recipe, few = str(folder / "series.yaml"), ["trainer.max_steps=6", "trainer.log_every=1", "scheduler=constant"]
    two = ["--nproc", "2", "plan=ddp", "trainer.micro_batch_size=4"]
    assert main(["train", recipe, *few, *two, "run.dir=whole"]) == 0, capsys.readouterr().err
    assert main(["train", recipe, *few, *two, "run.dir=parts", "trainer.stop_at=3"]) == 0
    assert main(["train", recipe, *few, "run.dir=parts"]) == 0
    whole, parts = (_numbers(tmp_path / run) for run in ("whole", "parts"))
    assert len(whole) == 7
    for one, other in zip(whole, parts, strict=True):  # the second half of ``parts`` ran on one process
        assert one == pytest.approx(other, rel=1e-4)
    assert main(["predict", recipe, "run.dir=whole", "--out", "out.jsonl", "--limit", "3"]) == 0
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [len(row["forecast"]) for row in rows] == [16, 16, 16]
    assert main(["export", "whole", "exported"]) == 0
    assert json.loads(Path("exported/scaler.json").read_text()).keys() == {"mean", "deviation"}
    _, report = PatchTSTForPrediction.from_pretrained("exported", output_loading_info=True)
    assert not any(report.values())
