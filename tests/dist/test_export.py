"""What is exported is what ``transformers`` loads: identical logits, any type, shards, averaged weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.recipes import tiny_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer
from trireme import UserError
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build, train
from trireme.trainer.checkpoint.export import export

FAMILIES = ["persimmon", "gpt_neox", "llama"]


def _logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(24).reshape(2, 12)).logits


@pytest.mark.parametrize(
    "overrides",
    [[f"model={family}_tiny"] for family in FAMILIES]
    + [["model=llama_tiny", "+model.config.tie_word_embeddings=true"]],
    ids=[*FAMILIES, "tied"],
)
def test_identical_logits(tmp_path: Path, overrides: list[str]) -> None:
    recipe = tiny_recipe(tmp_path / "run", *overrides, "trainer.max_steps=3")
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(_logits(loaded), _logits(live.strategy.module))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("def f(): return 'ü'").input_ids) == "def f(): return 'ü'"
    assert loaded.generate(input_ids=torch.tensor([[5]]), max_new_tokens=4, do_sample=False).shape == (1, 5)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_types_and_shards(
    tmp_path: Path, dtype: str, torch_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trireme.trainer.checkpoint.export.GROUP_BYTES", 30_000)  # several groups to a file
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=2"))
    whole = AutoModelForCausalLM.from_pretrained(export(str(tmp_path / "run"), str(tmp_path / "fp32")))
    folder = export(str(tmp_path / "run"), str(tmp_path / "small"), dtype=dtype, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    small = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert small.dtype == torch_dtype
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name).to(torch_dtype)), name


def test_averaged_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "trainer.max_steps=3", "+ema.decay=0.5")
    train(recipe)
    live = build(recipe, build_mesh(recipe.plan), resume="auto")
    averaged = AutoModelForCausalLM.from_pretrained(export(str(tmp_path / "run"), str(tmp_path / "ema"), ema=True))
    for name, tensor in ((n.removeprefix("ema."), t) for n, t in live.ema.saved_tensors().items()):
        assert torch.equal(averaged.get_parameter(name), tensor)
        assert (
            name.endswith("bias") or "norm" in name or not torch.equal(live.strategy.module.get_parameter(name), tensor)
        )


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        export(str(tmp_path), str(tmp_path / "out"))
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=1"))
    with pytest.raises(UserError, match="no averaged weights"):
        export(str(tmp_path / "run"), str(tmp_path / "out"), ema=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        export(str(tmp_path / "run"), str(tmp_path / "out"))
    with pytest.raises(UserError, match="not a size"):
        export(str(tmp_path / "run"), str(tmp_path / "other"), max_shard_size="big")


def test_training_goes_on_from_exported_weights(tmp_path: Path) -> None:
    """model.weights=FOLDER starts from exactly what was exported, with its tokenizer."""
    train(tiny_recipe(tmp_path / "run", "trainer.max_steps=3"))
    folder = export(str(tmp_path / "run"), str(tmp_path / "out"))
    recipe = tiny_recipe(tmp_path / "tuned", f"model.weights={folder}", f"data.tokenizer.path={folder}")
    tuned = build(recipe, build_mesh(recipe.plan))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(_logits(loaded), _logits(tuned.strategy.module))
