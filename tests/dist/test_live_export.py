"""Tests of the callback ``export``: it exports checkpoints in the background, and does not change the training."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.parallel.mesh import build_mesh
from trireme.parallel.plan import Plan
from trireme.trainer.build import train
from trireme.trainer.callbacks.export import Export
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.trainer_state import Control

EXPORT = "+callbacks.export._target_=trireme.trainer.callbacks.export.Export"


PLAIN = Export._export


def _late(self: Export, checkpoint: Path) -> None:
    time.sleep(1)
    PLAIN(self, checkpoint)


class Slow(Export):
    """An export that takes a second, so that saves, rotations and the end of training happen meanwhile."""

    seconds = 1.0

    def _export(self, checkpoint: Path) -> None:
        time.sleep(self.seconds)
        super()._export(checkpoint)


def _train(run_dir: Path, *overrides: str, steps: int = 6) -> None:
    short = ["trainer.eval_at_end=false", f"trainer.max_steps={steps}", "checkpoint.every=2", "checkpoint.keep_last=1"]
    train(tiny_recipe(run_dir, *short, *overrides))


def _same(one: Path, other: Path) -> bool:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def _spread(run_dir: Path) -> None:
    Export._export = _late  # type: ignore[method-assign]  (in this rank only)
    _train(
        run_dir,
        "plan=fsdp_full_shard",
        EXPORT,
        "+callbacks.export.at=every_save",
        "+callbacks.export.dtype=bf16",
    )


def test_every_save_on_two_ranks(tmp_path: Path) -> None:
    """The rotation deletes checkpoints while they are exported; in the end ``exported`` holds the last one."""
    kept_ranks(_spread, 2, tmp_path / "run")
    offline = export(str(tmp_path / "run"), str(tmp_path / "offline"), ExportOptions("bf16"))
    assert _same(tmp_path / "run" / "exported", offline)
    assert not (tmp_path / "run" / ".exporting").exists() and not list((tmp_path / "run").glob(".*.partial"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "was not exported" not in log and log.count("exported ") >= 1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "exported", dtype="auto").dtype == torch.bfloat16


def test_an_export_at_the_end_is_not_repeated(tmp_path: Path) -> None:
    """Training lines equal those without an export; a finished run that is started again does not export again."""
    out = tmp_path / "models" / "mine"
    overrides = [EXPORT, f"+callbacks.export.out={out}", "+callbacks.export.ema=true", "+ema.decay=0.5"]
    _train(tmp_path / "run", *overrides)
    _train(tmp_path / "plain", "+ema.decay=0.5")
    assert lines(tmp_path / "run") == lines(tmp_path / "plain")
    assert _same(out, export(str(tmp_path / "plain"), str(tmp_path / "offline"), ExportOptions(ema=True)))
    written = (out / "model.safetensors").stat().st_mtime_ns
    _train(tmp_path / "run", *overrides)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    recipe = tiny_recipe(tmp_path / "other", EXPORT, "+callbacks.export.ema=true", "+ema.decay=0.5")
    with pytest.raises(UserError, match="keeps none"):  # ``trireme check`` refuses it too
        train(replace(recipe, ema=None))


def test_a_model_that_is_older_than_the_checkpoint_is_exported_again(tmp_path: Path) -> None:
    """The run was ended between its last save and the end of its export."""
    _train(tmp_path / "run", EXPORT, steps=2)
    _train(tmp_path / "run", steps=4)
    _train(tmp_path / "run", EXPORT, steps=4)
    assert _same(tmp_path / "run" / "exported", export(str(tmp_path / "run"), str(tmp_path / "offline")))


def test_a_run_that_must_leave_does_not_wait_for_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints are complete, so the run leaves at once, and exports the model after the next start."""

    def told(self: Export, checkpoint: Path) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        while True:
            self._check()
            time.sleep(0.01)

    recipe = tiny_recipe(tmp_path / "run", "trainer.eval_at_end=false", "trainer.max_steps=2", EXPORT)
    with monkeypatch.context() as patched:
        patched.setattr(Export, "_export", told)
        assert train(recipe).interrupted == "SIGUSR1"
    assert not (tmp_path / "run" / "exported").exists()
    assert train(recipe).interrupted == ""
    assert _same(tmp_path / "run" / "exported", export(str(tmp_path / "run"), str(tmp_path / "offline")))


def test_a_long_export_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Export, "_export", lambda *_: time.sleep(4))
    watchdog = "+callbacks.watchdog={_target_: trireme.trainer.callbacks.watchdog.Watchdog, timeout: 1.5}"
    _train(tmp_path / "run", EXPORT, watchdog, steps=2)
    assert "no step for" not in (tmp_path / "run" / "log.txt").read_text()


def test_a_failure_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _train(tmp_path / "run", EXPORT, f"+callbacks.export.out={tmp_path}/file/out", "+callbacks.export.at=every_save")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step_00000006 was not exported; training goes on" in log and "Traceback" not in log
    assert (tmp_path / "run" / "checkpoints" / "step_00000006" / "manifest.json").exists()


def _wait_beyond_the_limit(run_dir: str) -> float:
    limit = 4.0
    mesh = build_mesh(Plan(name="ddp", shard=1, replicate="auto"), timeout_minutes=limit / 60)
    trainer = SimpleNamespace(
        mesh=mesh,
        ema=None,
        run_dir=Path(run_dir),
        store=None,
        leaving=SimpleNamespace(asked=lambda: ""),
        emit=lambda _: None,
        ended_with=None,
    )
    callback, state, control = Slow("every_save"), None, Control()
    callback.seconds = 2.5 * limit
    callback.on_train_begin(trainer, state, control)
    mesh.barrier()
    callback.on_save(trainer, state, control, next(Path(run_dir).glob("checkpoints/step_*")))
    began = time.monotonic()
    callback.on_train_end(trainer, state, control)
    waited = time.monotonic() - began
    callback.close()
    mesh.close()
    return waited / limit


@pytest.mark.slow
def test_nobody_waits_beyond_the_time_limit_of_collectives(tmp_path: Path) -> None:
    _train(tmp_path / "run", steps=2)
    assert all(waited > 2 for waited in kept_ranks(_wait_beyond_the_limit, 2, str(tmp_path / "run")))
    assert _same(tmp_path / "run" / "exported", export(str(tmp_path / "run"), str(tmp_path / "offline")))


def test_a_failed_run_drops_its_export(tmp_path: Path) -> None:
    """``close`` without ``on_train_end`` waits for no export and leaves no half-written folder."""
    _train(tmp_path / "run", steps=2)
    trainer = SimpleNamespace(mesh=SimpleNamespace(is_main=True), ema=None, run_dir=tmp_path / "run")
    callback = Slow("every_save")
    callback.on_train_begin(trainer, None, Control())  # type: ignore[arg-type]
    callback.on_save(trainer, None, Control(), tmp_path / "run" / "checkpoints" / "step_00000002")  # type: ignore[arg-type]
    callback.close()
    assert not (tmp_path / "run" / "exported").exists() and not (tmp_path / "run" / ".exporting").exists()


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at='never' is not known"):
        Export(at="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_shard_size='5 apples' is not a size"):
        Export(max_shard_size="5 apples")
