"""Build the model of a recipe: a module on the meta device, and a stream of its weights.

The module has shapes only, and its weights come one tensor at a time, so a plan that shards the model never holds all
of it.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..errors import Problem, UserError
from .base_assets import end_of_text_ids, generation_values
from .initial_weights import initial_weights
from .model_config import ModelConfig, hf_config, weights_path
from .pretrained import match_weights, read_weights
from .vocabulary import Vocabulary, too_few_embeddings

log = logging.getLogger("trireme.models")
WeightSource = Callable[[Collection[str]], Iterable[tuple[str, Tensor]]]
"""Function from parameter names to (name, full CPU tensor) pairs, one at a time."""
HEADS = {"causal_lm": AutoModelForCausalLM}
"""Factory of transformers for each task head."""


def build_on_meta(model: ModelConfig, head: str, vocabulary: Vocabulary) -> PreTrainedModel:
    """The model with ``head``, in fp32, on the meta device, with the tokenizer's special tokens in its configuration.

    Raises:
        UserError: the vocabulary is larger than the model's, or no model can be built with such a configuration.
    """
    config = hf_config(model)
    if vocabulary.size > config.vocab_size:
        raise UserError(too_few_embeddings(config.vocab_size, vocabulary.size, model.weights))
    base = {name: getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
    config.bos_token_id, config.eos_token_id, config.pad_token_id = vocabulary.bos, vocabulary.eos, vocabulary.pad
    config.use_cache = False
    try:
        with torch.device("meta"):
            built = HEADS[head].from_config(config, dtype=torch.float32, attn_implementation=model.kernel)
    except (ArithmeticError, AssertionError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        why = f"gives no model: {type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(Problem("model.config", why, "change the fields that this message is about")) from error
    built.config.architectures = [
        type(built).__name__
    ]  # as save_pretrained notes it: readers of config.json ask for it
    if model.weights is not None:
        _keep_special_tokens(built, base, vocabulary, generation_values(model, vocabulary.eos))
    freeze(built, model.frozen)
    return built


def _keep_special_tokens(
    model: PreTrainedModel, base: dict[str, Any], vocabulary: Vocabulary, generation: dict[str, Any] | None
) -> None:
    """Combine the base's special tokens with the tokenizer's.

    This waits until the model is built, because while building the padding token of the configuration decides which
    embedding gets no gradient.
    """
    eos = end_of_text_ids(base["eos"], vocabulary.eos)
    model.config.eos_token_id = eos
    model.config.bos_token_id = vocabulary.bos if base["bos"] is None else base["bos"]
    model.config.pad_token_id = base["pad"] if vocabulary.pad is None else vocabulary.pad
    if model.generation_config is not None:
        model.generation_config.eos_token_id = generation["eos_token_id"] if generation else eos


def freeze(model: PreTrainedModel, patterns: list[str]) -> None:
    """Switch off the gradients of parameters by name or pattern.

    Raises:
        UserError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    unmatched = [pattern for pattern in patterns if not fnmatch.filter(names, pattern)]
    if unmatched:
        examples = ", ".join(names[:3])
        raise UserError(
            Problem("model.frozen", f"no parameter matches {', '.join(unmatched)}", f"names are such as {examples}")
        )
    for pattern in patterns:
        for name in fnmatch.filter(names, pattern):
            model.get_parameter(name).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(Problem("model.frozen", "leaves nothing to train", "freeze fewer parameters", patterns))


def weight_source(config: ModelConfig, model: PreTrainedModel, seed: int, speaks: bool = True) -> WeightSource:
    """The function that yields the requested weights of ``model``: stored ones from files, all others computed.

    Args:
        model: on the meta device; it must not change later, because every call of the function looks at its modules.
        speaks: log notes on stored tensors that are not used; one rank does.

    Raises:
        UserError: the weights do not fit the model; this is known before any tensor is read.
    """
    path = weights_path(config) if config.weights is not None else None
    stored = match_weights(model, path, config.spec) if path else None
    for note in stored.notes if stored and speaks else ():
        log.warning("model.weights: %s", note)

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        found: set[str] = set()
        if stored and path:
            for name, tensor in read_weights(stored, path, names):
                found.add(name)
                yield name, tensor
        # Buffers outside the state dict, such as rotary frequencies, are in no file and are computed.
        yield from initial_weights(model, seed, set(names) - found)

    return weights
