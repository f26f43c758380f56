"""Models in which packed documents would see each other are refused, by a known list or by a trial forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from families.tiny_config import tiny_config
from helpers.recipes import FEW_FILES, recipe_of
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_packing import check_packing
from trireme.models.document_attention import KERNEL, attend_within_documents
from trireme.models.family import families
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise
from trireme.trainer.build import train
from trireme.trainer.packing_check import EXACT, differences, two_orders


def auto(kind: str) -> ModelConfig:
    return ModelConfig("auto", {"model_type": kind, **tiny_config(kind)})


def difference(kind: str) -> float:
    config = auto(kind)
    built, source = (build_on_meta(config, "causal_lm", Vocabulary(96)) for _ in range(2))
    attend_within_documents(built)
    materialise(built, torch.device("cpu"), weight_source(config, source, 0))
    micro = two_orders(96, 16)
    with torch.no_grad():
        sums = differences(built.eval()(**micro.inputs), micro)
    return float((sums["difference"] / sums["spread"]).sqrt())


@pytest.mark.parametrize("kind", ["qwen3", "mistral", "gemma3_text", "gpt_bigcode"])
def test_documents_are_apart(kind: str) -> None:
    assert check_packing(auto(kind), "causal_lm", "bins", 4) == []
    assert difference(kind) < EXACT


@pytest.mark.parametrize("kind", ["falcon", "xglm", "jamba"])
def test_a_trial_finds_documents_that_see_each_other(kind: str) -> None:
    assert check_packing(auto(kind), "causal_lm", "bins", 4) == []
    assert difference(kind) > 10 * EXACT


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_a_model_without_positions_is_refused_by_name(kind: str) -> None:
    (problem,) = check_packing(auto(kind), "causal_lm", "bins", 1)
    assert problem.field == "data.packing" and "takes no position_ids" in problem.why


def test_other_heads_and_kernels_are_refused() -> None:
    small = ModelConfig("llama", {}, attention="flash_attention_2")
    (problem,) = check_packing(ModelConfig("bert", {}), "masked_lm", "bins", 1)
    assert "predict next tokens" in problem.why
    (problem,) = check_packing(small, "causal_lm", "bins", 2)
    assert problem.field == "model.attention" and "micro_batch_size" in problem.why
    assert check_packing(small, "causal_lm", "bins", 1) == []


def test_a_family_that_mixes_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families(), "llama", replace(families()["llama"], packs=False))
    (problem,) = check_packing(ModelConfig("llama", {}), "causal_lm", "separate_blocks", 1)
    assert "see each other" in problem.why and "data.packing=true" in problem.fix


@pytest.mark.parametrize("kind", ["falcon", "qwen3"])
def test_training_begins_with_the_trial(kind: str, tmp_path: Path) -> None:
    recipe = tmp_path / "auto.yaml"
    model = {"family": "auto", "config": {"model_type": kind, **tiny_config(kind)}}
    defaults = ["/base", {"/data": "python_stdlib"}, {"override /callbacks": "minimal"}, "_self_"]
    data = {"block_size": 64, "packing": "bins", "overflow": "split", "source": {"roots": FEW_FILES}}
    trainer = {"max_steps": 1, "global_batch_size": 2, "micro_batch_size": 2, "eval_at_end": False}
    parts = {"data": {**data, "tokenizer": {"vocab_size": 400}}, "trainer": trainer, "checkpoint": {"at_end": False}}
    recipe.write_text(yaml.safe_dump({"defaults": defaults, "model": model, **parts}))
    if kind == "qwen3":
        assert train(recipe_of(recipe, tmp_path / "run")).step == 1
        return
    with pytest.raises(UserError, match="each changes the other's logits"):
        train(recipe_of(recipe, tmp_path / "run"))


def test_eager_models_keep_their_kernel() -> None:
    built = build_on_meta(
        ModelConfig("gptj", {"n_embd": 32, "n_head": 4, "rotary_dim": 4}), "causal_lm", Vocabulary(96)
    )
    attend_within_documents(built)
    assert built.config._attn_implementation == "eager" != KERNEL
