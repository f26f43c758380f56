"""Checkpoints: bit-exact resume, other world sizes, rotation, damage, full disks, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers.disk import small_disk
from helpers.metrics import lines, training, worst_difference
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from trireme import UserError
from trireme.trainer.build import train
from trireme.trainer.checkpoint.layout import verify

OPTIMIZERS = {"adamw": 1e-3, "sgd": 0.3, "adafactor": 1e-2, "lion": 3e-4, "adamw_8bit": 1e-3}


def _train(run_dir: Path, *overrides: str, resume: str = "auto") -> None:
    train(tiny_recipe(run_dir, *overrides), resume=resume)


def _tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "checkpoints" / f"step_{step:08d}" / "tensors").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_is_bit_exact_for_every_optimizer(tmp_path: Path, optimizer: str) -> None:
    overrides = [f"optimizer={optimizer}", f"optimizer.lr={OPTIMIZERS[optimizer]}", "scheduler=cosine"]
    _train(tmp_path / "whole", *overrides)
    _train(tmp_path / "parts", *overrides, "trainer.stop_at=4", "trainer.eval_at_end=false")
    _train(tmp_path / "parts", *overrides)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    whole, parts = _tensors(tmp_path / "whole", 10), _tensors(tmp_path / "parts", 10)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert any(name.startswith("optim.") for name in whole)
    assert training(tmp_path / "whole")[0]["loss"] > training(tmp_path / "whole")[-1]["loss"]


def test_one_layout_for_all_plans(tmp_path: Path) -> None:
    """Saved by two ranks and by one: the same names and shapes, and each resumes the other."""
    _train(tmp_path / "one", "trainer.stop_at=5", "checkpoint.every=5")
    run_ranks(_train, 2, tmp_path / "two", "plan=ddp", "trainer.stop_at=5")
    one, two = _tensors(tmp_path / "one", 5), _tensors(tmp_path / "two", 5)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    run_ranks(_train, 2, tmp_path / "one", "plan=ddp")
    _train(tmp_path / "two")
    assert [line["step"] for line in training(tmp_path / "one")] == list(range(1, 11))
    assert worst_difference(training(tmp_path / "one"), training(tmp_path / "two")) < 1e-5


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    _train(
        tmp_path,
        "trainer.max_steps=12",
        "checkpoint.every=2",
        "trainer.eval_every=2",
        "checkpoint.keep_last=2",
        "checkpoint.keep_best=1",
        "optimizer.lr=0.05",
        "trainer.max_grad_norm=null",
    )
    losses = {line["step"]: line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line}
    best = min(losses, key=lambda step: losses[step])
    assert set(_steps(tmp_path)) == {10, 12, best}


def test_later_checkpoints_do_not_push_out_new_ones(tmp_path: Path) -> None:
    """Two damaged ones ahead, and a save off the calendar: it must stay, else nothing good would be left."""
    _train(tmp_path, "checkpoint.every=2", "checkpoint.keep_last=3", "trainer.stop_at=6", "trainer.eval_at_end=false")
    for step in (4, 6):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").write_text("{}")
    _train(tmp_path, "trainer.stop_at=3", "checkpoint.keep_last=2", "trainer.eval_at_end=false")
    assert set(_steps(tmp_path)) == {2, 3, 4, 6}
    _train(tmp_path, "checkpoint.every=2", "checkpoint.keep_last=2", "trainer.stop_at=8", "trainer.eval_at_end=false")
    assert set(_steps(tmp_path)) == {6, 8}


def test_what_killed_saves_left_is_cleared_away(tmp_path: Path) -> None:
    """Else a second rewrite of a step would find its hidden name taken, and disks would fill up."""
    leftovers = [".step_00000003.partial", ".step_00000005.replaced", ".step_00000005.deleted"]
    for name in leftovers:
        (tmp_path / "checkpoints" / name / "tensors").mkdir(parents=True)
    _train(tmp_path, "checkpoint.every=5", "trainer.max_steps=10", "checkpoint.keep_last=1")
    assert _steps(tmp_path) == [10] and not list((tmp_path / "checkpoints").glob(".*"))


def test_a_step_that_is_written_again_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder changes names with the new one in one step; at every rename a whole checkpoint has the name."""
    overrides = [
        "checkpoint.every=2",
        "trainer.max_steps=2",
        "trainer.eval_at_end=false",
        "checkpoint.asynchronous=false",
    ]
    train(tiny_recipe(tmp_path, *overrides))
    target, seen, rename = tmp_path / "checkpoints" / "step_00000002", [], os.replace
    first = (target / "manifest.json").stat().st_ino

    def watched(source, destination) -> None:
        rename(source, destination)
        seen.append((target / "manifest.json").exists())

    monkeypatch.setattr(os, "replace", watched)
    (tmp_path / "checkpoints" / "step_00000002").joinpath("state.json").write_text("{}")  # damaged: passed over
    train(tiny_recipe(tmp_path, *overrides), resume="never")
    assert seen and all(seen) and verify(target) is None
    assert (target / "manifest.json").stat().st_ino != first
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_checkpoint_that_lost_its_manifest_is_named_and_passed_over(tmp_path: Path) -> None:
    _train(tmp_path, "checkpoint.every=5", "trainer.stop_at=10")
    newest = tmp_path / "checkpoints" / "step_00000010"
    (newest / "manifest.json").unlink()
    before = lines(tmp_path)
    _train(tmp_path)
    assert lines(tmp_path) == before
    assert f"checkpoint {newest} manifest.json is missing; it is left as it is" in (tmp_path / "log.txt").read_text()
    assert (newest / "manifest.json").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    _train(tmp_path, "checkpoint.every=5")
    before = lines(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000010"
    victim = next((newest / "tensors").iterdir())
    data = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    else:
        data[len(data) // 2] ^= 1
        victim.write_bytes(data if damage == "flip" else data[:-10])
    with pytest.raises(UserError, match=r"damaged|missing|bytes instead"):
        _train(tmp_path, resume=str(newest))
    _train(tmp_path)
    assert lines(tmp_path) == before


@pytest.mark.parametrize("damage", ["contents", "manifest"])
def test_when_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path: Path, damage: str) -> None:
    _train(tmp_path, "checkpoint.every=5")
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        if damage == "contents":
            (folder / "state.json").write_text("{}")
        else:
            (folder / "manifest.json").unlink()
    before = lines(tmp_path)
    with pytest.raises(
        UserError, match=r"no usable checkpoint: step_00000005 (state\.json has 2 bytes|manifest\.json is missing)"
    ):
        _train(tmp_path)
    assert lines(tmp_path) == before and _steps(tmp_path) == [5, 10]


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, "trainer.stop_at=2")
    with pytest.raises(UserError, match=r"optimizer\.lr.*another run.dir|another run.dir|changed: optimizer.lr"):
        _train(tmp_path, "optimizer.lr=0.5")
    train(tiny_recipe(tmp_path, "optimizer.lr=0.5", "trainer.max_steps=3"), fresh=True)
    assert _steps(tmp_path) == [3] and _steps(tmp_path.with_name(tmp_path.name + ".1")) == [2]


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    _train(tmp_path, "trainer.stop_at=2")
    suffixes = {path.suffix for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".yaml", ".txt", ".jinja"}


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """Room for one checkpoint and a half: the second fails with a message, the first stays and is resumed from."""
    run_dir, roomy = tmp_path / "disk" / "run", tmp_path / "roomy"
    with small_disk(tmp_path / "disk", 3400 * 1024):
        with pytest.raises(UserError, match="could not be written"):
            _train(run_dir, "checkpoint.every=5", "trainer.eval_at_end=false")
        assert _steps(run_dir) == [5]
        assert not list((run_dir / "checkpoints").glob(".*"))
        assert "No space left on device" in (run_dir / "log.txt").read_text()
        shutil.copytree(run_dir, roomy)
    _train(roomy, "checkpoint.every=5", "trainer.eval_at_end=false")
    _train(tmp_path / "undisturbed", "checkpoint.every=5", "trainer.eval_at_end=false")
    assert lines(roomy) == lines(tmp_path / "undisturbed")


def test_an_unwritable_run_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir"):
        _train(tmp_path / "file" / "run")


def test_the_loss_scale_and_average_are_restored(tmp_path: Path) -> None:
    overrides = ["plan.precision=fp16", "+ema.decay=0.9"]
    _train(tmp_path / "whole", *overrides)
    _train(tmp_path / "parts", *overrides, "trainer.stop_at=5", "trainer.eval_at_end=false")
    scale = json.loads((tmp_path / "parts/checkpoints/step_00000005/state.json").read_text())["scalars"]["loss_scale"]
    assert scale["value"] > 1
    _train(tmp_path / "parts", *overrides)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
