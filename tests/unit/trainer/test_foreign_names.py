"""Tests of loading other tools' checkpoints: tensors that the model lacks cause a warning, and quantised weights are
refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.model_config import ModelConfig, hf_config
from trireme.trainer.checkpoint.load.open_source import open_source
from trireme.trainer.checkpoint.load.weight_reader import checkpoint_weights

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def trainer_folder(tmp_path: Path) -> Path:
    """A checkpoint folder of transformers' Trainer, without its optimizer."""
    folder = tmp_path / "checkpoint-3"
    AutoModelForCausalLM.from_config(hf_config(ModelConfig("llama", SMALL))).save_pretrained(folder)
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    return folder


def _model() -> PreTrainedModel:
    return build_on_meta(ModelConfig("llama", SMALL), "causal_lm", Vocabulary(64))


def _with(folder: Path, name: str) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), name: torch.ones(2)}, file, metadata={"format": "pt"})


def test_stored_tensors_that_the_model_lacks_are_named(trainer_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "trireme.checkpoint"):
        checkpoint_weights(open_source(trainer_folder), _model())
        assert caplog.text == ""
        _with(trainer_folder, "model.rotary_emb.inv_freq")
        checkpoint_weights(open_source(trainer_folder), _model())
        assert caplog.text == ""
        _with(trainer_folder, "v_head.weight")
        checkpoint_weights(open_source(trainer_folder), _model())
    assert "1 stored tensor(s) have no place in the model and are not used: v_head.weight (a value head)" in caplog.text


def test_quantised_weights_are_refused(trainer_folder: Path) -> None:
    _with(trainer_folder, f"{Q}.weight_scale_inv")
    with pytest.raises(ValueError, match="quantised weights"):
        checkpoint_weights(open_source(trainer_folder), _model())
