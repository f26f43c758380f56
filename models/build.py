"""From the ``model`` part of a recipe to a module on the meta device and a stream of its weights.

Nothing is allocated here: the module has shapes only, and weights come one tensor at a time, so that a plan which
shards the model never holds all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from .. import Problem, UserError
from .config import ModelConfig, hf_config, weights_folder
from .initial import initial_weights
from .pretrained import folder_weights

HEADS = {"causal_lm": AutoModelForCausalLM}
"""Task head -> transformers' factory."""


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of its tokenizer."""

    size: int
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None


def build_on_meta(model: ModelConfig, head: str, vocabulary: Vocabulary) -> PreTrainedModel:
    """The model with ``head``, in fp32, on the meta device, with the tokenizer's special tokens in its configuration.

    Raises:
        UserError: the vocabulary is larger than the model's.
    """
    config = hf_config(model)
    if vocabulary.size > config.vocab_size:
        raise UserError(
            Problem(
                "model.config.vocab_size",
                f"is smaller than the tokenizer's {vocabulary.size} tokens",
                f"use at least {vocabulary.size}, or a tokenizer of at most {config.vocab_size} tokens",
                config.vocab_size,
            )
        )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = vocabulary.bos, vocabulary.eos, vocabulary.pad
    config.use_cache = False
    with torch.device("meta"):
        return HEADS[head].from_config(config, dtype=torch.float32, attn_implementation=model.attention)


def weight_stream(config: ModelConfig, model: PreTrainedModel, seed: int) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers of ``model`` by name, from ``config.weights`` or from the seed."""
    if config.weights is None:
        yield from initial_weights(model, seed)
        return
    found: set[str] = set()
    for name, tensor in folder_weights(model, weights_folder(config), config.spec):
        found.add(name)
        yield name, tensor
    # What files never hold (rotary frequencies and other buffers outside the state dict) is computed.
    yield from ((name, tensor) for name, tensor in initial_weights(model, seed, parameters=False) if name not in found)
