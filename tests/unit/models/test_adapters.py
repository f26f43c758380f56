"""Tests of LoRA and DoRA adapters: which layers get one, which parameters train, initial values, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled, logits, on_meta, shaken
from trireme.configs.validate import read
from trireme.errors import UserError
from trireme.models.adapter_config import AdapterConfig
from trireme.models.adapters import adapter_names
from trireme.models.low_rank import adapted_layers, adapter_in, is_part
from trireme.models.model_config import ModelConfig

LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _adapted(family: str = "llama", **adapter: Any) -> dict[str, Any]:
    return dict(adapted_layers(on_meta(config_of(family, AdapterConfig(**adapter)))))


def test_all_linear_leaves_heads_out() -> None:
    found = _adapted()
    assert {path.rpartition(".")[2] for path in found} == set(LLAMA_LAYERS)
    assert len(found) == 2 * len(LLAMA_LAYERS)
    assert {path.rpartition(".")[2] for path in _adapted("gpt2")} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize(
    ("adapter", "wanted"),
    [
        ({"targets": ["q_proj", "v_proj"]}, {"q_proj", "v_proj"}),
        ({"targets": r".*\.self_attn\.[qk]_proj"}, {"q_proj", "k_proj"}),
        ({"targets": ["q_proj", "up_proj"], "exclude": ["up_proj"]}, {"q_proj"}),
        ({"targets": ["q_proj", "up_proj"], "exclude": [r".*\.mlp(\..*)?", "up_proj"]}, {"q_proj"}),
        ({"targets": ["lm_head", "q_proj"]}, {"lm_head", "q_proj"}),
    ],
)
def test_layers_are_chosen_by_name(adapter: dict[str, Any], wanted: set[str]) -> None:
    assert {path.rpartition(".")[2] for path in _adapted(**adapter)} == wanted


def test_a_layer_can_have_a_rank_of_its_own() -> None:
    adapter = {"rank": 4, "alpha": 6, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*v_proj": 30}}
    found = _adapted(**adapter)
    for path, layer in found.items():
        rank = 2 if path.endswith("q_proj") else 4
        alpha = 30 if path == "model.layers.1.self_attn.v_proj" else 6
        assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == rank
        assert adapter_in(layer).scaling == alpha / rank
    assert adapter_in(next(iter(_adapted(rank=4, alpha=6, rslora=True).values()))).scaling == 3


def test_only_adapters_and_named_modules_are_trained() -> None:
    model = on_meta(config_of("llama", AdapterConfig(modules_to_save=["embed_tokens"], dora=True)))
    plain = {name for name in adapter_names(model) if not is_part(name)}
    assert plain == {"model.embed_tokens.weight"}
    parts = {name.rpartition(".")[2] for name in adapter_names(model)} - {"weight"}
    assert parts == {"lora_A", "lora_B", "lora_magnitude_vector"}
    names = {name for name, _ in on_meta(config_of("llama")).named_parameters()}
    assert names == {name for name, _ in model.named_parameters() if not is_part(name)}, "the base keeps its names"


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_training_begins_with_the_base(family: str, dora: bool) -> None:
    adapted, base = filled(config_of(family, AdapterConfig(dora=dora))), filled(config_of(family))
    torch.testing.assert_close(logits(adapted), logits(base), rtol=0, atol=1e-6 if dora else 0)
    shaken(adapted)
    assert (logits(adapted) - logits(base)).abs().max() > 1e-2


def test_first_values_follow_from_seed_and_name() -> None:
    """Initial values do not depend on other layers, so a rank that holds a part of the model draws the same values."""
    all_, few = (filled(config_of("llama", AdapterConfig(rank=4, **more))) for more in ({}, {"targets": ["v_proj"]}))
    name = "model.layers.1.self_attn.v_proj.lora_A"
    assert torch.equal(all_.get_parameter(name), few.get_parameter(name))
    assert not torch.equal(all_.get_parameter(name), all_.get_parameter(name.replace("layers.1", "layers.0")))
    other = filled(config_of("llama", AdapterConfig(rank=4)), seed=1)
    assert not torch.equal(all_.get_parameter(name), other.get_parameter(name))
    bound = 1 / 32**0.5
    assert 0.9 * bound < all_.get_parameter(name).abs().max() <= bound
    gaussian = filled(config_of("llama", AdapterConfig(rank=4, init="gaussian")))
    spread = torch.cat([layer.lora_A.flatten() for _, layer in adapted_layers(gaussian)]).std()
    assert abs(spread - 1 / 4) < 0.02
    random = filled(config_of("llama", AdapterConfig(rank=4, init="random")))
    assert all(layer.lora_B.abs().max() > 0 for _, layer in adapted_layers(random))


def test_dropout_applies_to_adapters_only() -> None:
    model = filled(config_of("llama", AdapterConfig(dropout=0.5, init="random")))
    assert torch.equal(logits(model), logits(model))
    model.train()
    torch.manual_seed(0)
    first = logits(model)
    assert not torch.equal(first, logits(model))
    assert model.get_submodule("model.layers.0.self_attn.q_proj.lora_dropout")


@pytest.mark.parametrize(
    ("adapter", "family", "words"),
    [
        ({"targets": ["query"]}, "llama", ("matches no layer", "q_proj")),
        ({"targets": "all_the_layers"}, "llama", ("matches no layer", "q_proj")),
        ({"targets": ["self_attn"]}, "llama", ("LlamaAttention", "linear layers")),
        ({"targets": ["embed_tokens"]}, "llama", ("Embedding", "modules_to_save=[embed_tokens]")),
        ({"targets": ["lm_head"]}, "gpt2", ("transformer.wte", "modules_to_save=[wte]")),
        ({"targets": ["lm_head"], "modules_to_save": ["lm_head"]}, "llama", ("trains fully", "one of the two")),
        ({"modules_to_save": ["head"]}, "llama", ("modules_to_save", "lm_head")),
        ({"exclude": list(LLAMA_LAYERS)}, "llama", ("leaves no layer", "q_proj")),
        ({"exclude": ["vision"]}, "llama", ("exclude", "matches no layer with an adapter", "q_proj")),
        ({"rank_pattern": {"query": 4}}, "llama", ("rank_pattern.query", "q_proj")),
        ({"alpha_pattern": {"query": 4}}, "llama", ("alpha_pattern.query", "q_proj")),
        ({"path": "/nowhere"}, "llama", ("model.adapter.path", "no folder")),
    ],
)
def test_what_names_no_layer_is_refused(adapter: dict[str, Any], family: str, words: tuple[str, ...]) -> None:
    config = config_of(family)
    config.adapter = AdapterConfig(**adapter)
    with pytest.raises(UserError) as refusal:
        on_meta(config)
    for word in words:
        assert word in str(refusal.value), refusal.value


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"rank": 0}, ("rank", "trains nothing")),
        ({"rank_pattern": {"q_proj": 0}}, ("rank_pattern.q_proj", "trains nothing")),
        ({"alpha": 0.0}, ("alpha", "positive")),
        ({"dropout": 1.0}, ("dropout", "below 1")),
        ({"lr_ratio": 0.0}, ("lr_ratio", "positive")),
        ({"targets": "all_linear"}, ("targets", "did you mean all-linear")),
        ({"targets": "(q_proj"}, ("targets", "regular expression")),
        ({"targets": []}, ("targets", "names no layer")),
        ({"init": "pissa"}, ("init",)),
        ({"path": "x", "init": "gaussian"}, ("init", "no effect")),
        ({"lora_alpha": 8}, ("lora_alpha", "model.adapter.alpha")),
        ({"r": 8}, ("r", "model.adapter.rank")),
    ],
)
def test_wrong_values_are_one_problem(adapter: dict[str, Any], words: tuple[str, ...]) -> None:
    _, problems = read({"family": "llama", "adapter": adapter}, ModelConfig)
    assert problems
    for word in words:
        assert any(word in str(problem) for problem in problems), problems


def test_a_head_that_begins_at_random_must_be_trained(tmp_path: Any) -> None:
    from trireme.models.check_model import check_model

    filled(config_of("llama")).save_pretrained(tmp_path)
    config = ModelConfig(weights=str(tmp_path), adapter=AdapterConfig())
    (problem,) = check_model(config, 8, "sequence_classification")
    assert "modules_to_save=[score]" in str(problem)
    config = ModelConfig(weights=str(tmp_path), adapter=AdapterConfig(modules_to_save=["score"]))
    assert check_model(config, 8, "sequence_classification") == []
