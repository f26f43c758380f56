"""Tiny models with adapters, whole on one process."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from trireme.models.adapter_config import AdapterConfig
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    },
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
}


def config_of(family: str, adapter: AdapterConfig | None = None, **fields: Any) -> ModelConfig:
    return ModelConfig(family, {**SIZES[family], **fields}, adapter=adapter)


def on_meta(config: ModelConfig, head: str = "causal_lm", labels: tuple[str, ...] = ()) -> PreTrainedModel:
    return build_on_meta(config, head, Facts(labels=labels))


def filled(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """The model with its first values, in evaluation mode."""
    model = on_meta(config)
    materialise(model, torch.device("cpu"), weight_source(config, copy.deepcopy(model), seed))
    return model.eval()


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 5) -> None:
    """Move the trained parameters away from their first values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(24).reshape(2, 12)).logits
