"""Tests of the notes about recipe options that have no effect: when a note appears, and that some shipped plans cause
none.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import trireme_here
from helpers.recipes import TINY, tiny_recipe
from trireme.launch.train import main
from trireme.trainer.build import train
from trireme.trainer.ignored_options import ignored_options


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("plan.deepspeed.stage=1",), "plan.deepspeed.stage=1 has no effect: plan single does not use DeepSpeed"),
        (("plan.fsdp.forward_prefetch=2",), "plan.fsdp.forward_prefetch=2 has no effect"),
        (("plan.pipelining.schedule=gpipe",), "plan.pipelining.schedule=gpipe has no effect"),
        (("plan=fsdp_full_shard", "plan.ddp.bucket_cap_mb=7"), "plan.ddp.bucket_cap_mb=7 has no effect"),
        (("data.held_out=0",), "trainer.eval_samples=16 has no effect: nothing is held out"),
        (("checkpoint.every=50", "checkpoint.at_end=false"), "checkpoint.every=50 has no effect"),
        (
            ("callbacks=[minimal,nonfinite]", "callbacks.nonfinite.every=3"),
            "callbacks.nonfinite.every=3 has no effect: action=skip does not read it, stop and rollback do",
        ),
        (
            ("callbacks=[minimal,nonfinite]", "callbacks.nonfinite.action=stop", "callbacks.nonfinite.patience=3"),
            "callbacks.nonfinite.patience=3 has no effect: action=stop does not read it, skip does",
        ),
        (("trainer.eval_every=50", "trainer.eval_at_end=false"), "trainer.eval_every=50 has no effect"),
    ],
)
def test_options_without_effect_are_reported(overrides: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert any(said in note for note in ignored_options(tiny_recipe(tmp_path, *overrides)))


@pytest.mark.parametrize(
    ("kind", "overrides", "why"),
    [
        ("samples", ("callbacks=default",), "the callback sample writes them"),
        ("curve", ("callbacks=minimal",), "the callback curve draws it"),
        ("checkpoints", ("checkpoint.every=null", "checkpoint.at_end=false"), "checkpoint.every is null"),
    ],
)
def test_tracker_files_that_no_callback_writes_are_reported(
    kind: str, overrides: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    kept = ("tracker=mlflow", f"callbacks.mlflow.artifacts=[log,{kind}]")
    (note,) = ignored_options(tiny_recipe(tmp_path, *overrides, *kept))
    assert note.startswith(f"callbacks.mlflow.artifacts={kind} has no effect: {why}")
    making = ("callbacks=[default,sample]", "checkpoint.every=null", "checkpoint.at_end=true")
    assert ignored_options(tiny_recipe(tmp_path, *making, *kept)) == []


def test_steps_that_follow_from_the_data_are_known_when_the_run_begins(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "trainer.max_steps=null", "trainer.epochs=1", "trainer.stop_at=50")
    assert ignored_options(recipe) == []
    assert ignored_options(recipe, 20) == ["trainer.stop_at=50 has no effect: the run ends at step 20"]


def test_check_and_train_report_ignored_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checked = trireme_here(capsys, "check", str(TINY), "plan.fsdp.forward_prefetch=2")
    assert checked.returncode == 0 and "note   plan.fsdp.forward_prefetch=2 has no effect" in checked.stdout
    recipe = tiny_recipe(tmp_path, "plan.fsdp.forward_prefetch=2", "trainer.max_steps=1", "trainer.eval_at_end=false")
    train(recipe)
    assert "plan.fsdp.forward_prefetch=2 has no effect" in (Path(recipe.run.dir) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("plan", "ranks"),
    [("single", 1), ("ddp", 2), ("zero3_offload", 2), ("fsdp_hybrid_shard_zero2", 4), ("3d_zero1", 8)],
)
def test_shipped_plans_have_no_ignored_options(
    plan: str, ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setenv("RANK", "0")
    assert ignored_options(tiny_recipe(tmp_path, f"plan={plan}", "trainer.global_batch_size=32")) == []


def test_a_rank_of_another_launcher_cannot_restart_its_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRIREME_LAUNCHER_PID", raising=False)
    assert main([str(TINY), f"run.dir={tmp_path}", "--max-restarts", "2"]) == 2
    assert "--max-restarts" in capsys.readouterr().err
