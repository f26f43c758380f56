"""Tests of checkpoints: bit-exact resume, changed world size, rotation, damaged files, full disks, and refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.disk import small_disk
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import tiny_recipe
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trireme.errors import UserError
from trireme.trainer import run_folder, saving
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.checkpoint.layout import checkpoints_under, metric_of, verify

OPTIMIZERS = {"adamw": 1e-3, "sgd": 0.3, "adafactor": 1e-2, "lion": 3e-4, "adamw_8bit": 1e-3}


def _train(run_dir: Path, *overrides: str, resume: str = "auto") -> None:
    train(tiny_recipe(run_dir, *overrides), resume=resume)


def _tensors(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    files = sorted((run_dir / "checkpoints" / f"step_{step:08d}" / "tensors").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in checkpoints_under(run_dir / "checkpoints"))


def progress_of(run_dir: Path) -> dict[str, Any]:
    newest = checkpoints_under(run_dir / "checkpoints")[0]
    return json.loads((newest / "state.json").read_text())["trainer"]


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
    """One rank and two ranks save the same names and shapes, and each resumes from the other's checkpoint."""
    _train(tmp_path / "one", "trainer.stop_at=5", "checkpoint.every=5")
    kept_ranks(_train, 2, tmp_path / "two", "plan=ddp", "trainer.stop_at=5")
    one, two = _tensors(tmp_path / "one", 5), _tensors(tmp_path / "two", 5)
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}
    kept_ranks(_train, 2, tmp_path / "one", "plan=ddp")
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
    """With the later checkpoints of steps 4 and 6 damaged, the rotation must keep the new checkpoint of step 3."""
    _train(tmp_path, "checkpoint.every=2", "checkpoint.keep_last=3", "trainer.stop_at=6", "trainer.eval_at_end=false")
    for step in (4, 6):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "state.json").write_text("{}")
    _train(tmp_path, "trainer.stop_at=3", "checkpoint.keep_last=2", "trainer.eval_at_end=false")
    assert set(_steps(tmp_path)) == {2, 3, 4, 6}
    _train(tmp_path, "checkpoint.every=2", "checkpoint.keep_last=2", "trainer.stop_at=8", "trainer.eval_at_end=false")
    assert set(_steps(tmp_path)) == {6, 8}


def test_what_killed_saves_left_is_cleared_away(tmp_path: Path) -> None:
    """Leftovers would block the hidden name of a later save of the same step, and fill the disk."""
    leftovers = [".step_00000003.partial", ".step_00000005.replaced", ".step_00000005.deleted"]
    for name in leftovers:
        (tmp_path / "checkpoints" / name / "tensors").mkdir(parents=True)
    _train(tmp_path, "checkpoint.every=5", "trainer.max_steps=10", "checkpoint.keep_last=1")
    assert _steps(tmp_path) == [10] and not list((tmp_path / "checkpoints").glob(".*"))


def test_a_step_that_is_written_again_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old and the new folder swap names at once, so the name always belongs to a complete checkpoint."""
    overrides = [
        "checkpoint.every=1",
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
    (target / "state.json").write_text("{}")  # damaged, so the run resumes from step 1 and writes step 2 again
    train(tiny_recipe(tmp_path, *overrides))
    assert seen and all(seen) and verify(target) is None
    assert (target / "manifest.json").stat().st_ino != first
    assert _steps(tmp_path) == [1, 2] and not list((tmp_path / "checkpoints").glob(".*"))


def test_resuming_an_earlier_checkpoint_sets_later_ones_aside(tmp_path: Path) -> None:
    """Otherwise the next start, or a rollback, would go on from the newest checkpoint of the abandoned branch."""
    arguments = ("checkpoint.every=2", "checkpoint.keep_last=4", "trainer.eval_at_end=false")
    _train(tmp_path, *arguments, "trainer.stop_at=6")
    recipe = tiny_recipe(tmp_path, "trainer.max_steps=10", *arguments, "optimizer.lr=0.01", "trainer.stop_at=3")
    train(recipe, resume=str(tmp_path / "checkpoints" / "step_00000002"))
    assert _steps(tmp_path) == [2, 3]
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.abandoned"))
    assert kept == ["step_00000004.abandoned", "step_00000006.abandoned"]
    assert verify(tmp_path / "checkpoints" / kept[0]) is None
    _train(tmp_path, *arguments, "optimizer.lr=0.01", "trainer.stop_at=4")
    assert "step_00000003 at step 3" in (tmp_path / "log.txt").read_text()
    recipe.trainer.stop_at = 2
    train(recipe, resume="never")
    assert _steps(tmp_path) == [2]
    assert (tmp_path / "checkpoints" / "step_00000004.abandoned.1").is_dir(), "the second of that name"
    recipe.trainer.stop_at = 7
    train(recipe, resume=str(tmp_path / "checkpoints" / "step_00000006.abandoned"))
    assert _steps(tmp_path) == [2, 7], "back on the older branch: what lies before it stays"


def test_a_resume_that_is_refused_leaves_everything_as_it_is(tmp_path: Path) -> None:
    _train(tmp_path / "run", "trainer.stop_at=2", "trainer.eval_at_end=false")
    _train(tmp_path / "other", "model=gpt2_tiny", "trainer.stop_at=1", "trainer.eval_at_end=false")
    with pytest.raises(UserError, match="--resume"):
        _train(tmp_path / "run", resume=str(tmp_path / "other"))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_metric_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    """A damaged manifest does not end a resumed run either."""
    arguments = ("checkpoint.every=2", "checkpoint.keep_last=1", "checkpoint.keep_best=1", "trainer.eval_every=2")
    _train(tmp_path, *arguments, "checkpoint.keep_last=3", "trainer.stop_at=6")
    for step, manifest in ((4, '{"metric": NaN}'), (6, "[")):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "manifest.json").write_text(manifest)
    assert [metric_of(folder) is None for folder in checkpoints_under(tmp_path / "checkpoints")] == [True, True, False]
    _train(tmp_path, *arguments, "trainer.max_steps=8")
    assert "resuming" in (tmp_path / "log.txt").read_text()
    losses = {line["step"]: line["eval_loss"] for line in lines(tmp_path) if "eval_loss" in line}
    assert set(_steps(tmp_path)) == {8, min((2, 8), key=lambda step: losses[step])}


def test_a_recipe_that_finds_no_room_costs_its_checkpoint_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = run_folder.write_recipe

    def full(recipe, folder, others=None) -> None:
        if ".step_00000002" in str(folder):
            raise OSError(28, "No space left on device", str(folder))
        write(recipe, folder, others)

    monkeypatch.setattr(saving, "write_recipe", full)
    _train(tmp_path, "checkpoint.every=2", "trainer.max_steps=4", "trainer.eval_at_end=false")
    assert _steps(tmp_path) == [4]
    assert "checkpoint at step 2 was not written: No space left on device" in (tmp_path / "log.txt").read_text()


def test_passes_end_at_the_same_sample_with_another_batch(tmp_path: Path) -> None:
    arguments = ("trainer.max_steps=null", "trainer.epochs=0.1", "trainer.eval_at_end=false", "checkpoint.keep_last=9")
    train(tiny_recipe(tmp_path, *arguments))
    whole = progress_of(tmp_path)
    half = whole["step"] // 2
    train(tiny_recipe(tmp_path / "other", *arguments, f"trainer.stop_at={half}"))
    step, size = half, whole["samples"] // whole["step"]
    named = str(tmp_path / "other" / "checkpoints" / f"step_{half:08d}")
    doubled = (*arguments, f"trainer.global_batch_size={2 * size}")
    train(tiny_recipe(tmp_path / "more", *doubled, f"trainer.stop_at={step + 1}"), resume=named)
    train(tiny_recipe(tmp_path / "more", *doubled))  # the next start resumes by itself, with the doubled batch
    state = progress_of(tmp_path / "more")
    assert whole["samples"] <= state["samples"] < whole["samples"] + 2 * size
    assert state["step"] == half + -(-(whole["samples"] - half * size) // (2 * size))


def test_a_tokenizer_with_several_templates(tmp_path: Path) -> None:
    """The template files have a folder of their own, in every checkpoint and in the export."""
    _train(tmp_path / "first", "trainer.stop_at=1", "trainer.eval_at_end=false")
    model = tmp_path / "first" / "checkpoints" / "step_00000001" / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "tool: {{ messages[0].content }}"}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    own = (f"data.tokenizer.path={tmp_path / 'tokenizer'}",)
    _train(tmp_path / "run", *own, "checkpoint.every=1", "trainer.max_steps=2", "trainer.eval_at_end=false")
    assert _steps(tmp_path / "run") == [1, 2]
    for folder in (*(tmp_path / "run" / "checkpoints").iterdir(), export(str(tmp_path / "run"), str(tmp_path / "out"))):
        loaded = AutoTokenizer.from_pretrained(folder / "model" if (folder / "model").is_dir() else folder)
        assert loaded.chat_template == tokenizer.chat_template


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
        UserError,
        match=rf"run.dir.*{tmp_path}'\s.*no usable checkpoint: step_00000010 .*; step_00000005 "
        r"(state\.json has 2 bytes|manifest\.json is missing).*\s.*--fresh .*--resume PATH",
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
    """The disk has room for one checkpoint and a half: the second fails with a message, and a resume uses the first."""
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
    """``train`` looks again, since a folder may become unwritable after the check."""
    recipe = tiny_recipe(tmp_path / "file" / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run\.dir"):
        train(recipe)


def test_the_loss_scale_and_average_are_restored(tmp_path: Path) -> None:
    overrides = ["plan.precision=fp16", "+ema.decay=0.9"]
    _train(tmp_path / "whole", *overrides)
    _train(tmp_path / "parts", *overrides, "trainer.stop_at=5", "trainer.eval_at_end=false")
    scale = json.loads((tmp_path / "parts/checkpoints/step_00000005/state.json").read_text())["scalars"]["loss_scale"]
    assert scale["value"] > 1
    _train(tmp_path / "parts", *overrides)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


@pytest.mark.parametrize("plan", ["ddp", "fsdp_full_shard", "zero2"])
def test_a_checkpoint_of_the_weights_alone(tmp_path: Path, plan: str) -> None:
    overrides = [f"plan={plan}", "checkpoint.only_model=true", "checkpoint.every=2"]
    kept_ranks(_train, 2, tmp_path, *overrides, "trainer.stop_at=4")
    assert {name.partition(".")[0] for name in _tensors(tmp_path, 4)} == {"model"}
    kept_ranks(_train, 2, tmp_path, *overrides, "trainer.stop_at=6")
    assert "holds no state of the optimizer: its moments begin at zero" in (tmp_path / "log.txt").read_text()
    assert [line["step"] for line in training(tmp_path)][-1] == 6
