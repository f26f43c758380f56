"""Tests of loading pretrained weights from a folder: three families, bf16 files, older tensor names, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_model import check_model
from trireme.models.model_config import ModelConfig, hf_config

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
FAMILIES = ["persimmon", "gpt_neox", "llama"]


def _saved(folder: Path, family: str, **options) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(hf_config(ModelConfig(family, dict(SMALL))))
    model.save_pretrained(folder, **options)
    return model


def _stream(family: str, folder: Path) -> dict[str, torch.Tensor]:
    config = ModelConfig(family, weights=str(folder))
    model = build_on_meta(config, "causal_lm", Vocabulary(64))
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    return dict(weight_source(config, model, seed=0)(names))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_read(tmp_path: Path, family: str) -> None:
    saved = _saved(tmp_path, family, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    weights = _stream(family, tmp_path)
    for name, tensor in [*saved.named_parameters(), *saved.named_buffers()]:
        assert torch.equal(weights[name], tensor), name
    assert check_model(ModelConfig(weights=str(tmp_path)), 16) == []


def test_published_names_from_before_a_renaming(tmp_path: Path) -> None:
    saved = _saved(tmp_path, "gpt_neox")
    tensors = load_file(tmp_path / "model.safetensors")
    head = next(name for name in tensors if name in ("lm_head.weight", "embed_out.weight"))
    tensors["embed_out.weight"] = tensors.pop(head)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(_stream("gpt_neox", tmp_path)["lm_head.weight"], saved.lm_head.weight)


def test_bf16_files_become_fp32_masters(tmp_path: Path) -> None:
    saved = _saved(tmp_path, "llama").to(torch.bfloat16)
    saved.save_pretrained(tmp_path)
    weights = _stream("llama", tmp_path)
    assert all(weights[name].dtype == torch.float32 for name, _ in saved.named_parameters())
    assert torch.equal(weights["lm_head.weight"], saved.lm_head.weight.float())


def test_missing_tensors_wrong_shapes_and_damage_are_named(tmp_path: Path) -> None:
    _saved(tmp_path, "llama")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": torch.ones(3)}, file)
    with pytest.raises(UserError, match=r"model\.norm\.weight.*\(3,\)"):
        _stream("llama", tmp_path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"lacks 1 tensor of.*layers\.1\.mlp\.up_proj"):
        _stream("llama", tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        _stream("llama", tmp_path)


def test_another_family_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path, "llama")
    (problem,) = check_model(ModelConfig("gpt_neox", weights=str(tmp_path)), 16)
    assert problem.field == "model.family" and "llama" in problem.why
