"""The model card of an exported model or adapter describes the data, training, metrics and recipe of the run, without
the path of the home folder.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from huggingface_hub import ModelCard
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import ExportOptions, export
from trireme.trainer.checkpoint.export.model_card import write_card
from trireme.trainer.checkpoint.export.quantised_folder import QuantiseOptions
from trireme.trainer.checkpoint.layout import checkpoints_under


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


def test_the_card_of_adapters(tmp_path: Path) -> None:
    """The card names the base, its quantisation and the packages that were used; it says if a model was merged."""
    pytest.importorskip("bitsandbytes")
    train(tiny_recipe(tmp_path / "base", "model=llama_tiny", "trainer.max_steps=1"))
    base = export(str(tmp_path / "base"), str(tmp_path / "start"))
    beside = ("model=pretrained", f"model.weights={base}", "adapter=dora", "model.adapter.rank=4", "quantization=nf4")
    train(tiny_recipe(tmp_path / "mine", *beside, "trainer.max_steps=2", "trainer.eval_every=2"))
    (tmp_path / "mine" / "curve.png").write_bytes(b"an image")
    folder = export(str(tmp_path / "mine"), str(tmp_path / "adapter"))
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
    assert {"llama", "lora", "trireme"} <= set(card.data.tags) and card.data.base_model is None  # no name of the hub
    assert f"Adapters for a `LlamaForCausalLM` (causal lm), trained on top of {base} on the task" in card.text
    (evaluated,) = (line for line in lines(tmp_path / "mine") if "eval_loss" in line)
    assert f"| loss | {evaluated['eval_loss']:.6g} |" in card.text and "(curve.png)" in card.text
    assert (folder / "curve.png").read_bytes() == b"an image"
    assert "| quantisation of the base | nf4 (group_size 64, double True, other_dtype fp32) |" in card.text
    layers = len(json.loads((folder / "adapter_config.json").read_text())["target_modules"])
    rows = [f"| adapters | DoRA of {layers} layers |", "| rank | 4 |", "| plan | single |"]
    assert [row for row in rows if row not in card.text] == []
    recipe = yaml.safe_load(card.text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["model"]["weights"] == str(base) and recipe["model"]["adapter"]["rank"] == 4
    (made,) = (line for line in card.text.splitlines() if line.startswith("Made with trireme"))
    assert f"torch {version('torch')}" in made and f"bitsandbytes {version('bitsandbytes')}" in made

    options = ExportOptions(quantize=QuantiseOptions("int8"))
    few = ModelCard.load(export(str(tmp_path / "mine"), str(tmp_path / "few"), options) / "README.md")
    assert few.data.library_name == "transformers" and "quantised (int8)" in few.text
    assert f"{base}, with adapters merged into it" in few.text and (tmp_path / "few" / "curve.png").is_file()
    assert (tmp_path / "few" / "config.json").is_file() and "lora" not in few.data.tags

    (newest,) = checkpoints_under(tmp_path / "mine" / "checkpoints")
    said = json.loads((newest / "model" / "base.json").read_text())
    (newest / "model" / "base.json").write_text(json.dumps({**said, "weights": "owner/name"}))
    write_card(newest, folder)
    known = ModelCard.load(folder / "README.md").data
    assert known.base_model == "owner/name" and known["base_model_relation"] == "adapter"
