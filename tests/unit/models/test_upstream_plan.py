"""Tensor-parallel plans that transformers ships for a model are used, or refused if trireme cannot interpret them. Also
tested: ``trireme check`` names the task heads of an architecture, and refuses its BatchNorms.
"""

from __future__ import annotations

from typing import Any

import pytest
from families.tiny_config import tiny_config
from helpers.recipes import TINY
from trireme.launch.cli import main
from trireme.models.check_model import family_for_plan
from trireme.models.model_config import ModelConfig, hf_config
from trireme.parallel.check_tensor_parallel import check_sequence, check_tensor
from trireme.parallel.recipe_values import RecipeValues


def family(model_type: str, **fields: Any) -> Any:
    config = {"model_type": model_type, **tiny_config(model_type), **fields}
    return family_for_plan(ModelConfig("auto", config), "causal_lm")


def test_norms_of_heads_are_shared_and_projections_split() -> None:
    plan = family("qwen3").tensor
    assert plan.column == ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj")
    assert plan.key_value == ("self_attn.k_proj", "self_attn.v_proj")
    assert plan.row == ("self_attn.o_proj", "mlp.down_proj")
    assert plan.per_head == ("self_attn.q_norm", "self_attn.k_norm")
    assert plan.norms == ("input_layernorm", "post_attention_layernorm")


def test_outputs_that_transformers_gathers_are_gathered() -> None:
    plan = family("olmo2").tensor
    assert plan.gathered == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    assert plan.scattered == ("self_attn.o_proj",)
    assert "self_attn.q_norm" in plan.norms


@pytest.mark.parametrize(
    ("model_type", "fields", "words"),
    [
        ("mamba", {}, "has no tensor plan in transformers"),
        ("mixtral", {}, "in an unsupported style"),
        ("cohere", {"use_qk_norm": True}, "does not say how to split self_attn.q_norm"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(model_type: str, fields: dict[str, Any], words: str) -> None:
    found = family(model_type, **fields)
    assert found.tensor is None
    (problem,) = check_tensor(found, None, 2)
    assert words in problem.why


def test_sizes_that_do_not_divide_and_split_sequences_are_refused() -> None:
    config = {"model_type": "qwen3", **tiny_config("qwen3")}
    model = ModelConfig("auto", {**config, "intermediate_size": 66})
    found = family_for_plan(model, "causal_lm")
    words = [problem.why for problem in check_tensor(found, hf_config(model), 4)]
    assert any("the outputs of mlp.gate_proj (66)" in why for why in words)
    assert any("num_key_value_heads=2" in why for why in words)
    values = RecipeValues(8, 8, None, 1, {}, "constant", 0, 0.0, 8, length=32, length_key="data.block_size")
    (problem,) = check_sequence(found, 4, values)
    assert "splits whole sequences" in problem.why


def test_a_check_names_the_heads_of_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(TINY.with_name("images.yaml"))
    assert main(["check", recipe, "model=resnet_tiny", "task=semantic_segmentation"]) == 2
    assert "one of its heads: image_classification" in capsys.readouterr().err


def test_a_check_finds_batch_norms(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(TINY.with_name("images.yaml"))
    assert main(["check", recipe, "model=resnet_tiny", "model.frozen_batchnorm=false"]) == 2
    assert "model.frozen_batchnorm" in capsys.readouterr().err
