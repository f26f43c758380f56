"""A Llama with one extra layer that its forward pass never uses, to test parameters without a gradient."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class OddConfig(LlamaConfig):
    model_type = "odd_llama"


class OddLlama(LlamaForCausalLM):
    """Llama with the unused layer ``beside``."""

    config_class = OddConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.beside = nn.Linear(config.hidden_size, 3)
        self.post_init()
