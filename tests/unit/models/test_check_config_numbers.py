"""Tests that a model configuration is refused before the model is built if it has impossible values, such as a hidden
size that the number of heads does not divide, or asks for attention kernels that cannot be used.

A configuration that ``check_model`` accepts must also build and compute in transformers.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.check_model import check_kernel, check_model, model_notes
from trireme.models.family import families
from trireme.models.model_config import ModelConfig, config_class, hf_config

FAMILIES = [name for name, family in families().items() if family.cut is not None]
CHANGES: list[dict[str, Any]] = [
    {"num_attention_heads": 3},
    {"num_attention_heads": 0},
    {"num_attention_heads": -4},
    {"num_attention_heads": 64},
    {"num_key_value_heads": 3},
    {"num_key_value_heads": 0},
    {"hidden_size": 0},
    {"hidden_size": -64},
    {"hidden_size": 66},
    {"hidden_size": 72},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": -1},
    {"vocab_size": 0},
    {"vocab_size": -512},
    {"intermediate_size": -1},
    {"n_inner": -1},
    {"ffn_dim": 0},
    {"lru_width": 66},
    {"max_position_embeddings": 0},
    {"partial_rotary_factor": 0.0},
    {"partial_rotary_factor": 2.0},
    {"partial_rotary_factor": -0.5},
    {"rotary_pct": 1.5},
    {"rotary_dim": 7},
    {"rotary_dim": 1000},
    {"attention_dropout": 1.5},
    {"resid_pdrop": -0.1},
    {"initializer_range": -1.0},
    {"layer_norm_eps": -1.0},
    {"hidden_act": "gleu"},
    {"activation_function": "gleu"},
]


def _preset(family: str) -> dict[str, Any]:
    file = Path(__file__).parents[3] / "configs" / "model" / f"{family}_tiny.yaml"
    config = yaml.safe_load(file.read_text())["config"]
    return {key: float(value) if value == "1e-5" else value for key, value in config.items()}


def _config(family: str, changes: dict[str, Any]) -> ModelConfig | None:
    """The family's tiny preset with changes, under the family's names of fields; None if it lacks such a field."""
    names = config_class(ModelConfig(family)).attribute_map
    preset = {names.get(key, key): value for key, value in _preset(family).items()}
    config = ModelConfig(family, preset | {names.get(key, key): value for key, value in changes.items()})
    unknown = any("unknown key" in problem.why for problem in check_model(config, 16))
    return None if unknown else config


def _computes(config: ModelConfig) -> bool:
    try:
        model = AutoModelForCausalLM.from_config(hf_config(config))
        with torch.no_grad():
            return bool(model(input_ids=torch.tensor([[0, 0, 0, 0]]), use_cache=False).logits.isfinite().all())
    except Exception:
        return False


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_that_pass_the_check_can_compute(family: str) -> None:
    wrong = []
    for changes in CHANGES:
        config = _config(family, changes)
        if config is None or check_model(config, 16):
            continue
        if not _computes(config):
            wrong.append(changes)
    assert not wrong


def test_a_model_that_cannot_be_built_is_one_message() -> None:
    with pytest.raises(UserError, match=r"model\.config\n.*cannot build the model: KeyError"):
        build_on_meta(ModelConfig("gpt2", {"activation_function": "gleu"}), "causal_lm", Vocabulary(1))


def test_a_list_that_is_too_short_is_named() -> None:
    config = {"model_type": "convnext", "depths": [1], "hidden_sizes": [8, 8, 8, 8]}
    with pytest.raises(UserError, match=r"lists that fit together: .*depths.*") as caught:
        build_on_meta(ModelConfig("auto", config), "image_classification", Vocabulary(1))
    assert "hidden_sizes" in str(caught.value)


def test_a_size_of_heads_that_the_recipe_writes_need_not_divide() -> None:
    config = {"model_type": "qwen3", "vocab_size": 512, "hidden_size": 66, "num_attention_heads": 4, "head_dim": 16}
    config |= {"num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
    assert check_model(ModelConfig("auto", config), 16) == [] and _computes(ModelConfig("auto", config))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tiny_preset_passes(family: str) -> None:
    config = _config(family, {})
    assert config is not None and check_model(config, 16) == [] and _computes(config)


@pytest.mark.parametrize(
    ("family", "changes", "field", "words"),
    [
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads", "does not divide num_attention_heads (4)"),
        ("gpt2", {"n_head": 3}, "n_head", "does not divide n_embd"),
        ("codegen", {"n_head": 2}, "n_head", "multiple of 4"),
        ("llama", {"vocab_size": -1}, "vocab_size", "at least 1"),
        ("llama", {"pad_token_id": 5000}, "pad_token_id", "not a token"),
        ("llama", {"eos_token_id": [2, -1]}, "eos_token_id", "not a token"),
        ("opt", {"dropout": 2.0}, "dropout", "between 0 and 1"),
    ],
)
def test_the_field_is_named_as_the_recipe_writes_it(
    family: str, changes: dict[str, Any], field: str, words: str
) -> None:
    problems = check_model(ModelConfig(family, _preset(family) | changes), 16)
    (problem,) = [problem for problem in problems if problem.field == f"model.config.{field}"]
    assert words in problem.why and problem.fix


def test_kernels_that_cannot_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("llama", attention="flash_attention_2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = check_kernel(config, "bf16")
    assert problem.field == "model.attention" and problem.fix.startswith("pip install flash-attn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (problem,) = check_kernel(config, "fp32")
    assert "plan.precision is fp32" in problem.why
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (problem,) = check_kernel(config, "bf16")
    assert "needs a GPU" in problem.why
    assert check_kernel(config, "bf16", here=False) == []
    assert check_kernel(ModelConfig("llama"), "fp32") == []
    flex = ModelConfig("llama", _preset("llama") | {"attention_dropout": 0.1}, attention="flex_attention")
    (problem,) = check_kernel(flex, "fp32")
    assert "needs a GPU" in problem.why and check_kernel(flex, "fp32", here=False) == []
    (problem,) = check_model(flex, 16)
    assert problem.field == "model.config.attention_dropout" and "drops nothing" in problem.why


def test_kernels_that_a_class_does_not_offer_are_refused() -> None:
    gemma = ModelConfig("auto", {"model_type": "gemma2"}, attention="sdpa")
    (problem,) = check_kernel(gemma, "fp32")
    assert "not offered by transformers for models of the type gemma2" in problem.why
    with pytest.raises(UserError, match=r"model\.attention = 'sdpa'\n.*does not go with the model: Gemma2"):
        build_on_meta(gemma, "causal_lm", Vocabulary(1))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_named_class_gets_the_kernel_of_the_recipe(kernel: Any) -> None:
    """Parts of a model get it too, such as a vision tower."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"model_type": "llama", "vocab_size": 64, **sizes}
    vision = {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
    llava = {"model_type": "llava", "text_config": text, "vision_config": vision}
    for name, config in (("LlamaForCausalLM", text), ("LlavaForConditionalGeneration", llava)):
        chosen = ModelConfig("auto", config, architecture=f"transformers.{name}", attention=kernel)
        found = build_on_meta(chosen, "causal_lm", Vocabulary(64)).config
        parts = [found, *(getattr(found, part) for part in ("text_config", "vision_config") if hasattr(found, part))]
        assert {part._attn_implementation for part in parts} == {kernel}


def test_families_that_overflow_in_fp16_are_told() -> None:
    (note,) = model_notes(ModelConfig("persimmon"), "fp16")
    assert "Persimmon gives NaN" in note and "bf16" in note
    assert model_notes(ModelConfig("persimmon"), "bf16") == model_notes(ModelConfig("gpt2"), "fp16") == []
