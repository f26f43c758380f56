"""Tests of the messages that a run prints when it ends or is started again, and of those about averaged weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import ROOTS, trireme_here
from helpers.recipes import TINY, tiny_recipe
from trireme.trainer.build import train

CALLBACKS = "trireme.trainer.callbacks"
SAMPLE = f"+callbacks.sample={{_target_: {CALLBACKS}.sample.Sample, prompts: [import], max_new_tokens: 4}}"
EARLY = f"+callbacks.early_stopping={{_target_: {CALLBACKS}.early_stopping.EarlyStopping, patience: 1, min_delta: 9}}"


def test_a_run_says_where_its_files_are_and_what_next_and_is_short_when_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("train", str(TINY), ROOTS, f"run.dir={tmp_path}", "trainer.max_steps=1", SAMPLE)
    first = trireme_here(capsys, *run)
    assert first.returncode == 0, first.stderr
    where = f"everything is in {tmp_path}: checkpoints/step_00000001, samples.txt, metrics.jsonl, summary.json, log.txt"
    assert where in first.stderr
    for command in ("generate", "export", "evaluate"):
        assert f"trireme {command} {tmp_path}" in first.stderr
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["train_tokens_cut"] > 0 and not any("train_tokens_cut" in line for line in lines[1:])
    assert "worse than unigram entropy" in first.stderr, "one step teaches nothing"
    assert "sample at step 1" in first.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["step"] == 1 and summary["samples"] == 8 and summary["eval_loss"] == lines[-1]["eval_loss"]
    assert summary["samples_per_second"] == pytest.approx(8 / summary["seconds"], rel=0.01)
    again = trireme_here(capsys, *run)
    assert again.returncode == 0 and "sample at step" not in again.stdout and where in again.stderr
    assert "nothing is left to train" in again.stderr and "unigram" not in again.stderr
    assert (tmp_path / "samples.txt").read_text().count("--- step") == 1
    assert json.loads((tmp_path / "summary.json").read_text()) == summary, "it is that of the start that trained"
    out = tmp_path / "out"
    exported = trireme_here(capsys, "export", str(tmp_path), str(out))
    assert exported.stdout == f"{out}\n"
    assert f"from_pretrained('{out}')" in exported.stderr and f"trireme generate {out}" in exported.stderr


def test_a_run_that_stopped_early_says_so_when_it_is_started_again(tmp_path: Path) -> None:
    overrides = ("trainer.max_steps=9", "trainer.eval_every=1", "trainer.eval_samples=2", EARLY)
    assert train(tiny_recipe(tmp_path, *overrides)).step == 2
    assert train(tiny_recipe(tmp_path, *overrides)).step == 2
    said = (tmp_path / "log.txt").read_text()
    assert said.count("nothing is trained: it has stopped early: eval_loss has not improved on") == 1
    assert "callbacks.early_stopping.patience" in said


@pytest.mark.parametrize("evaluate", [True, False])
def test_the_log_says_whether_averaged_weights_are_evaluated(evaluate: bool, tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path, "trainer.max_steps=2", "ema=average", f"ema.evaluate={str(evaluate).lower()}"))
    said = (tmp_path / "log.txt").read_text()
    assert ("evaluations use the averaged weights" in said) is evaluate
    assert ("(averaged weights)" in said) is evaluate
    assert ("averages over some 1000 steps, but the run has 2" in said) is evaluate
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert "eval_loss" in last and last.get("averaged", False) is evaluate
