"""Tests of runs whose base model, adapter or data folders were changed, moved or deleted after training began.

The checkpoint records which model was trained, so that a change is noticed, and a move is not taken for a change.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import logits
from helpers.command import refused, trireme_here
from helpers.metrics import training
from helpers.recipes import TINY, tiny_recipe
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.checkpoint.layout import checkpoints_under
from trireme.trainer.evaluate_only import evaluate
from trireme.trainer.run_folder import run_notes

LORA = ("adapter=lora", "model.adapter.rank=4", "model.adapter.alpha=8.0")
SHORT = ("trainer.max_steps=4", "trainer.eval_at_end=false", "optimizer.lr=0.004")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train(tiny_recipe(folder / "run", "model=llama_tiny", "trainer.max_steps=2"))
    return export(str(folder / "run"), str(folder / "llama"))


@pytest.fixture
def own_base(base: Path, tmp_path: Path) -> Path:
    """A copy of the base, which a test may change."""
    return Path(shutil.copytree(base, tmp_path / "own_base"))


def _recipe(base: Path, run_dir: Path, *overrides: str) -> Any:
    return tiny_recipe(run_dir, "model=pretrained", f"model.weights={base}", *SHORT, *overrides)


def _change(folder: Path, **fields: Any) -> None:
    file = folder if folder.suffix else folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def _merged(run: Path, out: Path) -> torch.Tensor:
    folder = export(str(run), str(out), ExportOptions(merge=True))
    return logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def test_an_adapter_that_was_continued_needs_its_folder_no_more(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's scale comes from the checkpoint, even if the folder has changed or is gone."""
    train(_recipe(base, tmp_path / "first", *LORA, "model.adapter.alpha_pattern={q_proj: 20}"))
    folder = export(str(tmp_path / "first"), str(tmp_path / "adapter"))
    more = ("adapter=continued", f"model.adapter.path={folder}")
    whole, recipe = (_recipe(base, tmp_path / name, *more) for name in ("whole", "run"))
    train(whole)
    train(_recipe(base, tmp_path / "run", *more, "trainer.stop_at=2"))
    (newest,) = checkpoints_under(tmp_path / "run" / "checkpoints")
    said = json.loads((newest / "model" / "adapter.json").read_text())
    assert set(said["alphas"].values()) == {8.0, 20.0} and set(said["ranks"].values()) == {4}

    found = []
    for step in ("same", "changed", "gone"):
        if step == "changed":
            _change(folder / "adapter_config.json", lora_alpha=64, alpha_pattern={}, use_rslora=True)
        elif step == "gone":
            shutil.rmtree(folder)
        loss = evaluate(recipe, None, False, None)["eval_loss"]
        live = logits(build(recipe, build_mesh(recipe.plan), resume="auto").strategy.module.eval())
        found.append((loss, live, _merged(tmp_path / "run", tmp_path / "merged" / step)))
        out = export(str(tmp_path / "run"), str(tmp_path / "peft" / step))
        assert json.loads((out / "adapter_config.json").read_text())["lora_alpha"] == 8
        assert not (out / "adapter.json").exists()
    for loss, *outputs in found[1:]:
        assert loss == found[0][0] and all(torch.equal(*pair) for pair in zip(outputs, found[0][1:], strict=True))
    torch.testing.assert_close(found[0][1], found[0][2], rtol=1e-4, atol=1e-5)

    command = [str(TINY), "model=pretrained", f"model.weights={base}", *SHORT, *more]
    roots = "data.source.roots=[" + str(Path(json.__file__).parent) + "]"
    for name in ("check", "evaluate"):
        told = trireme_here(capsys, name, *command, roots, f"run.dir={tmp_path / 'run'}")
        assert told.returncode == 0, told.stderr
    fresh = trireme_here(capsys, "train", *command, roots, f"run.dir={tmp_path / 'run'}", "--fresh")
    refused(fresh, "model.adapter.path", "no folder of this name")
    assert (tmp_path / "run" / "checkpoints").is_dir() and not (tmp_path / "run.1").exists()
    refused(trireme_here(capsys, "check", *command, roots, f"run.dir={tmp_path / 'new'}"), "model.adapter.path")

    train(recipe)
    assert [line["loss"] for line in training(tmp_path / "run")] == [
        line["loss"] for line in training(tmp_path / "whole")
    ]


def test_another_scale_in_the_recipe_is_reported(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(_recipe(base, tmp_path, *LORA))
    with caplog.at_level("WARNING", "trireme.trainer"):
        evaluate(_recipe(base, tmp_path, *LORA), None, False, None)
        assert "differs from" not in caplog.text
        evaluate(_recipe(base, tmp_path, *LORA[:2], "model.adapter.alpha=16.0"), None, False, None)
    assert "q_proj (4, not 2): the recipe's values are used" in caplog.text


def test_a_base_of_adapters_with_another_configuration_is_refused(own_base: Path, tmp_path: Path) -> None:
    """The base has the same weights but another config.json; a merge uses the configuration in the checkpoint."""
    recipe = _recipe(own_base, tmp_path / "run", *LORA)
    train(_recipe(own_base, tmp_path / "run", *LORA, "trainer.stop_at=2"))
    wanted = _merged(tmp_path / "run", tmp_path / "one")
    _change(own_base, rms_norm_eps=0.5)
    for go in (
        lambda: train(recipe),
        lambda: evaluate(recipe, None, False, None),
        lambda: export(str(tmp_path / "run"), str(tmp_path / "adapter")),
    ):
        with pytest.raises(UserError, match=r"another configuration \(rms_norm_eps\)") as refusal:
            go()
        assert "restore its config.json" in str(refusal.value)
    assert torch.equal(_merged(tmp_path / "run", tmp_path / "other"), wanted)


def test_a_whole_model_keeps_the_configuration_of_its_checkpoint(
    own_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = _recipe(own_base, tmp_path / "run")
    train(_recipe(own_base, tmp_path / "whole"))
    train(_recipe(own_base, tmp_path / "run", "trainer.stop_at=2"))
    before = evaluate(recipe, None, False, None)["eval_loss"]
    _change(own_base, rms_norm_eps=0.5)
    with caplog.at_level("WARNING", "trireme.trainer"):
        assert evaluate(recipe, None, False, None)["eval_loss"] == before
        train(recipe)
    assert caplog.text.count("another config.json now (rms_norm_eps)") == 2
    assert [line["loss"] for line in training(tmp_path / "run")] == [
        line["loss"] for line in training(tmp_path / "whole")
    ]
    (newest, *_) = checkpoints_under(tmp_path / "run" / "checkpoints")
    assert json.loads((newest / "model" / "config.json").read_text())["rms_norm_eps"] != 0.5
    moved = shutil.copytree(own_base, tmp_path / "moved")
    caplog.clear()
    with caplog.at_level("WARNING", "trireme.trainer"):  # another folder counts, with a warning
        assert evaluate(_recipe(moved, tmp_path / "run"), None, False, None)["eval_loss"] != before
    assert "in rms_norm_eps: model.weights is used" in caplog.text


@pytest.mark.parametrize("adapters", [LORA, ()], ids=["adapters", "whole"])
def test_files_under_another_path_are_no_change(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapters: tuple[str, ...]
) -> None:
    """A resume gives the same losses if files are named by a relative path or a link, or were moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "links").mkdir()
    for name in ("weights", "data"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "first" / name)
    shutil.copytree(base, "first/weights")
    Path("first/data").mkdir()
    for name in ("a", "b"):
        rows = [json.dumps({"text": f"{name} sails with {number} oars " * 9}) + "\n" for number in range(40)]
        Path(f"first/data/{name}.jsonl").write_text("".join(rows))

    def recipe(run: str, place: str, *more: str) -> Any:
        files = ("data=files", f"data.source.paths=[{place}/data/*.jsonl]", "data.block_size=32", "data.held_out=0.2")
        weights = (f"model.weights={place}/weights", f"data.tokenizer.path={place}/weights")
        keys = ("model=pretrained", *weights, *SHORT, *files, *adapters, *more)
        return tiny_recipe(tmp_path / run, f"data.cache_dir={tmp_path}/cache", *keys)

    train(recipe("whole", "first"))
    for step, place in enumerate(("first", str(tmp_path / "first"), "links", "moved"), start=1):
        if place == "moved":
            shutil.move("first", "moved")
        now = recipe("run", place, f"trainer.stop_at={step}")
        assert run_notes(now) == [] if step == 1 else "continues after" in run_notes(now)[0]
        train(now)
    losses = [[line["loss"] for line in training(tmp_path / run)] for run in ("whole", "run")]
    assert losses[0] == losses[1] and len(losses[0]) == 4

    other = Path(shutil.copytree("moved", "other"))
    row = json.dumps({"text": "another mast breaks " * 9}) + "\n"
    (other / "data" / "a.jsonl").write_text(row * 3 + (other / "data" / "b.jsonl").read_text())
    with pytest.raises(UserError, match="gives other documents than when step_00000004"):
        train(recipe("run", "other"))
    shutil.copy("moved/data/a.jsonl", other / "data")
    _other_weights(other / "weights")
    said = "gives another base than the one" if adapters else "other/weights holds other files than moved/weights did"
    with pytest.raises(UserError, match=said):
        train(recipe("run", "other"))


def test_an_adapter_that_has_moved_is_no_change(base: Path, tmp_path: Path) -> None:
    train(_recipe(base, tmp_path / "first", *LORA))
    folder = export(str(tmp_path / "first"), str(tmp_path / "adapter"))
    for key, more in (
        ("model.adapter.path", ("adapter=continued", "model.adapter.path={}")),
        ("model.merged_adapters.one.path", ("+model.merged_adapters={{one:{{path:{}}}}}",)),
    ):

        def recipe(place: Path, key: str = key, more: tuple[str, ...] = more) -> Any:
            return _recipe(base, tmp_path / key, *(each.format(place) for each in more))

        train(recipe(folder))
        moved = Path(shutil.copytree(folder, tmp_path / f"moved_{key}"))
        assert "continues after" in run_notes(recipe(moved))[0]
        train(recipe(moved))
        _change(moved / "adapter_config.json", lora_alpha=64)
        with pytest.raises(UserError, match=rf"changed: {re.escape(key)}\)"):
            train(recipe(moved))


def _other_weights(folder: Path) -> None:
    """Change one number of the weights."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, {"format": "pt"})
