"""Tests of pretrained weights that lack the head or some embedding rows: these start from reproducible random values.

New embedding rows are the same under DDP, FSDP and ZeRO-3. All other tensors are loaded from the weights. If the
weights have a head or an embedding of another size, the recipe must ask for new rows or a new head.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.kept_ranks import kept_ranks
from helpers.zero import load_deepspeed
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification
from trireme.errors import UserError
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig
from trireme.models.vocabulary import Vocabulary
from trireme.parallel.choose_strategy import build_strategy
from trireme.parallel.mesh import build_mesh
from trireme.parallel.plan import Plan
from trireme.parallel.recipe_values import RecipeValues
from trireme.parallel.zero.options import DeepSpeedOptions

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
}
PLANS = {
    "ddp": Plan(replicate="auto"),
    "fsdp_full_shard": Plan(data_parallel="fsdp", shard="auto"),
    "zero3": Plan(data_parallel="deepspeed", shard="auto", deepspeed=DeepSpeedOptions(stage=3)),
}


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A masked language model, which has no head for labels."""
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(**SIZES)).save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def tensors(model: ModelConfig, head: str, data: Facts) -> dict[str, Tensor]:
    built = build_on_meta(model, head, data)
    names = {name for name, _ in (*built.named_parameters(), *built.named_buffers())}
    return dict(weight_source(model, built, 7)(names))


def classes(count: int) -> Facts:
    labels = tuple(f"class {number}" for number in range(count))
    return Facts(Vocabulary(60), labels, "single_label_classification")


def test_a_missing_head_starts_from_random_values(backbone: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = ModelConfig(weights=str(backbone))
    found = tensors(model, "sequence_classification", classes(5))
    assert "begins at random" in caplog.text and "classifier.weight" in caplog.text
    assert found["classifier.weight"].shape == (5, 32) and found["classifier.weight"].std() > 0
    stored = BertForMaskedLM.from_pretrained(backbone).state_dict()
    backbone_names = [name for name in found if name.startswith("bert.") and "pooler" not in name]
    assert len(backbone_names) > 20
    for name in backbone_names:
        if name in stored:
            assert torch.equal(found[name], stored[name]), name
    again = tensors(model, "sequence_classification", classes(5))
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_other_labels_need_new_head(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match=r"model\.new_head=true"):
        tensors(ModelConfig(weights=str(tmp_path / "three")), "sequence_classification", classes(5))
    model = ModelConfig(weights=str(tmp_path / "three"), new_head=True)
    assert tensors(model, "sequence_classification", classes(5))["classifier.bias"].shape == (5,)
    same = tensors(ModelConfig(weights=str(tmp_path / "three")), "sequence_classification", classes(3))
    stored = BertForSequenceClassification.from_pretrained(tmp_path / "three").state_dict()
    assert torch.equal(same["classifier.weight"], stored["classifier.weight"])


def _placed(plan: Plan, weights: str) -> dict[str, Any]:
    """Every tensor as a whole, after the strategy has placed the model."""
    mesh = build_mesh(plan)
    model = ModelConfig(weights=weights, resize_embeddings=True)
    built = build_on_meta(model, "masked_lm", Facts(Vocabulary(70)))
    values = RecipeValues(4, 1, None, 1, {"_target_": "torch.optim.SGD", "lr": 0.1}, "constant", 0, 0.0, 32)
    strategy = build_strategy(plan, mesh, model.spec, values)
    strategy.place(built, weight_source(model, copy.deepcopy(built), 7))
    found = {}
    for name, parameter in strategy.named_parameters():
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                found[name] = parameter.detach().numpy().copy()
        else:
            full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            found[name] = full.detach().numpy().copy()
    mesh.close()
    return found


@pytest.mark.parametrize("name", PLANS)
def test_more_tokens_than_the_weights_have(name: str, backbone: Path) -> None:
    if name == "zero3":
        load_deepspeed()
    one = tensors(ModelConfig(weights=str(backbone), resize_embeddings=True), "masked_lm", Facts(Vocabulary(70)))
    stored = BertForMaskedLM.from_pretrained(backbone).state_dict()
    embedding = "bert.embeddings.word_embeddings.weight"
    assert one[embedding].shape == (70, 32) and torch.equal(one[embedding][:60], stored[embedding])
    assert one[embedding][60:].std() > 0 and one["cls.predictions.bias"].shape == (70,)
    for found in kept_ranks(_placed, 2, PLANS[name], str(backbone)):
        assert len(found) > 20 and all(np.array_equal(found[key], one[key].numpy()) for key in found)


def test_more_tokens_are_refused_unless_asked_for(backbone: Path) -> None:
    with pytest.raises(UserError, match=r"model\.resize_embeddings=true"):
        tensors(ModelConfig(weights=str(backbone)), "masked_lm", Facts(Vocabulary(70)))
