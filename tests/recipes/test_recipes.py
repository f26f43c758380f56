"""Every shipped recipe begins with two comments, its purpose and its command, and passes ``trireme check`` once its
required values are given. The recipe for fine-tuning also trains.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.recipes import tiny_recipe
from trireme.launch.cli import main
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that recipes with pretrained weights start from."""
    folder = tmp_path_factory.mktemp("weights")
    train(tiny_recipe(folder / "run", "model=llama_tiny", "trainer.max_steps=1"))
    return export(str(folder / "run"), str(folder / "out"))


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_recipe_begins_with_its_purpose_and_its_command(path: Path) -> None:
    what, command = path.read_text().splitlines()[:2]
    assert what.startswith("# ") and what.endswith(".")
    assert command.startswith(f"# trireme train {_name(path)}")


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_recipe_passes_the_check(
    path: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "audio" in path.parts and shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    texts = [json.dumps({"text": f"{number} oars pull in one stroke"}) for number in range(200)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    missing = {
        "model.family": "llama",
        "model.weights": str(weights),
        "data.source.paths": f"[{tmp_path}/texts.jsonl]",
        "data.block_size": "64",
    }
    if path.stem in ("lora", "qlora", "dpo"):  # their texts come with Python
        del missing["data.source.paths"]
    if path.stem in ("lora", "dpo"):  # the template's tokens
        missing["model.resize_embeddings"] = "true"
    needs = "finetune" in path.parts and path.stem != "chat"  # ``chat`` needs nothing
    given = [f"{key}={value}" for key, value in missing.items()] if needs else []
    if "multimodal" in path.parts:
        given = [f"data.source.path={_stamps(tmp_path)}"]
    assert main(["check", _name(path), *given]) == 0, capsys.readouterr().err


def _stamps(folder: Path) -> Path:
    """Two images with captions."""
    image = pytest.importorskip("PIL.Image")
    for name, color in (("owl", "brown"), ("sea", "blue")):
        image.new("RGB", (8, 8), color).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"A picture of the {name}.\n")
    return folder


def test_fine_tuning_runs_and_keeps_the_best(weights: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"the oar number {number} pulls with oar {number + 1} in one stroke"})
        for number in range(400)
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    code = main(
        [
            "train",
            "finetune/text",
            "model.family=llama",
            f"model.weights={weights}",
            f"data.source.paths=[{tmp_path}/corpus.jsonl]",
            "data.block_size=32",
            f"run.dir={tmp_path / 'run'}",
            "trainer.epochs=1",
            "trainer.eval_every=5",
            "optimizer.lr=1e-3",
            "plan.precision=fp32",
        ]
    )
    assert code == 0
    evaluations = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "eval_loss" in line
    ]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000
