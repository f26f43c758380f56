"""The model card of an exported model describes the data, training, metrics and recipe of the run."""

from __future__ import annotations

from pathlib import Path

import yaml
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from huggingface_hub import ModelCard
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export


def test_the_card_of_an_export(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "mine", "trainer.max_steps=4", "trainer.eval_every=2", "checkpoint.every=2"))
    card = ModelCard.load(export(str(tmp_path / "mine"), str(tmp_path / "out")) / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert "persimmon" in card.data.tags and set(card.data["metrics"]) == {"loss", "perplexity", "accuracy"}
    assert card.text.splitlines()[2] == "# mine" and "step 4 of the run" in card.text
    evaluations = {line["step"]: line for line in lines(tmp_path / "mine") if "eval_loss" in line}
    assert f"| loss | {evaluations[4]['eval_loss']:.6g} |" in card.text
    recipe = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["trainer"]["max_steps"] == 4 and recipe["model"]["family"] == "persimmon"
    earlier = export(str(tmp_path / "mine" / "checkpoints" / "step_00000002"), str(tmp_path / "earlier"))
    assert f"| loss | {evaluations[2]['eval_loss']:.6g} |" in (earlier / "README.md").read_text()


def test_home_is_not_published(tmp_path: Path) -> None:
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1", f"data.cache_dir={Path.home() / '.cache' / 'trireme'}"))
    card = (export(str(tmp_path / "run"), str(tmp_path / "out")) / "README.md").read_text()
    assert str(Path.home()) not in card and "~/.cache/trireme" in card
