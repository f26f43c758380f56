"""Tests of new T5 models (1.0 and 1.1): they start near the loss of random guessing, only version 1.1 has an untied
output head, and transformers and trireme load what was saved.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5ForConditionalGeneration
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.model_config import ModelConfig
from trireme.models.vocabulary import Vocabulary
from trireme.parallel.apply import materialise

SIZES = {
    "vocab_size": 1000,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
FIRST: dict[str, Any] = {}
LATER = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def _model(fields: dict[str, Any], weights: str | None = None) -> Any:
    config = ModelConfig("t5", {} if weights else {**SIZES, **fields}, weights=weights)
    model = build_on_meta(config, "seq2seq_lm", Vocabulary(1000, None, 1, 0))
    materialise(model, torch.device("cpu"), weight_source(config, model, 1))
    return model.eval()


def _logits(model: Any) -> torch.Tensor:
    tokens = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        return model(input_ids=tokens, decoder_input_ids=tokens.flip(1)).logits


@pytest.mark.parametrize(("fields", "tied"), [(FIRST, True), (LATER, False)])
def test_a_new_model_has_the_loss_of_random_guessing(fields: dict[str, Any], tied: bool) -> None:
    model = _model(fields)
    assert (model.lm_head.weight is model.shared.weight) is tied
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert float(model.shared.weight.detach().std()) == pytest.approx(1.0, rel=0.05)  # as the paper's code draws it
    losses = -_logits(model).log_softmax(-1)  # of every token at every place
    assert float(losses.mean()) == pytest.approx(math.log(1000), abs=1.0)
    assert model.config.decoder_start_token_id == 0


@pytest.mark.parametrize("fields", [FIRST, LATER])
def test_plain_transformers_loads_what_is_saved(fields: dict[str, Any], tmp_path: Path) -> None:
    model = _model(fields)
    model.save_pretrained(tmp_path)
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(_logits(plain), _logits(model))
    torch.testing.assert_close(_logits(_model({}, str(tmp_path))), _logits(model))
