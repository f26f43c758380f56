"""Before training, a task is refused if the architecture has no head for it, or if the task predicts the next token and
the model is not causal (a token can attend to later ones).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families.tiny_config import tiny_config
from helpers.recipes import tiny_recipe
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_head import stock_heads
from trireme.models.check_model import check_model
from trireme.models.heads import HEADS
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise
from trireme.trainer.build import train
from trireme.trainer.future_tokens_check import differences, two_endings
from trireme.trainer.packing_check import EXACT


def auto(kind: str, **config: object) -> ModelConfig:
    return ModelConfig("auto", {"model_type": kind, **tiny_config(kind), **config})


def difference(config: ModelConfig) -> float:
    built, source = (build_on_meta(config, "causal_lm", Vocabulary(96)) for _ in range(2))
    materialise(built, torch.device("cpu"), weight_source(config, source, 0))
    micro = two_endings(96, 16)
    with torch.no_grad():
        sums = differences(built.eval()(**micro.inputs), micro)
    return float((sums["difference"] / sums["spread"]).sqrt())


@pytest.mark.parametrize("kind", ["qwen3", "bloom", "mamba", "xglm"])
def test_a_trial_knows_models_that_see_no_later_token(kind: str) -> None:
    assert difference(auto(kind)) < EXACT


@pytest.mark.parametrize("kind", ["bert", "megatron-bert", "electra"])
def test_an_encoder_is_a_decoder_only_where_its_configuration_says_so(kind: str) -> None:
    (problem,) = check_model(auto(kind), 32, "causal_lm")
    assert problem.field == "task" and "each token sees those that follow" in problem.why
    assert difference(auto(kind)) > 10 * EXACT
    assert check_model(auto(kind, is_decoder=True), 32, "causal_lm") == []
    assert difference(auto(kind, is_decoder=True)) < EXACT
    assert check_model(auto(kind), 32, "masked_lm") == []


def test_a_model_that_is_not_causal_is_found_by_a_trial(tmp_path: Path) -> None:
    """XLNet sees all tokens, and its class warns of nothing."""
    fields = [f"+model.config.{name}={value}" for name, value in tiny_config("xlnet").items() if value is not None]
    recipe = tiny_recipe(tmp_path, "~model.config", "model.family=auto", "+model.config.model_type=xlnet", *fields)
    with pytest.raises(UserError, match="each token sees those that follow"):
        train(recipe)


@pytest.mark.parametrize(("family", "head"), [("persimmon", "masked_lm"), ("t5", "causal_lm"), ("vit", "ctc")])
def test_a_head_that_the_architecture_lacks(family: str, head: str) -> None:
    (problem,) = check_model(ModelConfig(family, {}), 1, head)
    assert problem.field == "task" and f"asks for the head {head}, which transformers does not have" in problem.why
    assert problem.fix.startswith("choose a task with one of its heads: ")


def test_the_table_read_as_text_is_that_of_transformers() -> None:
    from transformers.models.auto import modeling_auto

    for name, head in HEADS.items():
        mapping = getattr(modeling_auto, head.factory)._model_mapping
        for kind in mapping._model_mapping:
            assert name in stock_heads(kind), (name, kind)
