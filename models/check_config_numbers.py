"""Check the numbers of a model configuration (sizes, probabilities, head counts, special tokens), its activation and
its rotary positions.

With wrong values, transformers fails when it builds the model, or later in the first forward pass.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Problem

if TYPE_CHECKING:
    from .model_config import ModelConfig

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "ffn_dim",
    "word_embed_proj_dim",
    "n_inner",
    "n_ctx",
    "lru_width",
    "conv1d_width",
    "attention_window_size",
    "rotary_dim",
)
"""Whole numbers that must be at least 1; None means that a size follows from others."""
LARGEST = 2**31 - 1
"""Largest size of one dimension; the number of parameters overflows 64 bits beyond it."""
MOST_LAYERS = 10_000
"""Far more than any model has; each takes time and memory when a model is built, even without its weights."""
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""Sizes that never follow from others, so that None is refused."""
SHARES = ("dropout", "pdrop", "dropout_prob", "layerdrop")
"""Endings of fields that are probabilities."""
ABOVE_ZERO = ("_eps", "_epsilon", "rope_theta", "rotary_emb_base", "logits_soft_cap")
"""Endings of fields that must be above zero, because the model divides by them or takes their logarithm."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "swish", "relu", "relu2")
"""The usual activations; only for others is transformers imported and asked."""
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""The usual scalings of rotary positions; only for others is transformers imported and asked."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_arithmetic(config: Any, model: ModelConfig) -> list[Problem]:
    """Problems of a transformers configuration, by the names that the recipe would write."""
    problems = [*_numbers(config, model)]
    return problems or [
        *_activation(config, model),
        *_heads(config, model),
        *(_rope_type(config, model) or _rotary(config, model)),
        *_special_tokens(config, model),
    ]


def _numbers(config: Any, model: ModelConfig) -> Iterator[Problem]:
    values = {name: getattr(config, name, None) for name in SIZES}
    for name, value in values.items():
        if value is None and (name not in NEEDED or not hasattr(config, name)):
            continue
        if isinstance(value, list | tuple):  # sizes of several stages
            continue
        if isinstance(getattr(type(config), name, None), property):  # XLNet's length is -1, which is no limit
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield _problem(config, model, name, "must be a whole number of at least 1", "use a positive number", value)
        elif value > (most := MOST_LAYERS if name == "num_hidden_layers" else LARGEST):
            yield _problem(config, model, name, f"is above {most}", "use a smaller number", value)
    for name, value in config.to_dict().items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if name.endswith(SHARES) and not 0 <= value <= 1:
            yield _problem(config, model, name, "must be between 0 and 1", "use 0.0 for none", value)
        elif name.endswith(ABOVE_ZERO) and not (value > 0 and math.isfinite(value)):
            yield _problem(config, model, name, "must be above 0", "use a positive number", value)
        elif name.endswith(("initializer_range", "init_std")) and not (value >= 0 and math.isfinite(value)):
            yield _problem(config, model, name, "must not be negative", "use a number such as 0.02", value)


def _activation(config: Any, model: ModelConfig) -> Iterator[Problem]:
    for name in ("hidden_act", "activation_function", "hidden_activation"):
        value = getattr(config, name, None)
        if value is None or value in ACTIVATIONS:
            continue
        from transformers.activations import ACT2FN

        if value not in ACT2FN:
            near = difflib.get_close_matches(str(value), ACT2FN, n=1)
            fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ACTIVATIONS)}"
            yield _problem(config, model, name, "is not an activation that transformers has", fix, value)
            return  # several fields may be aliases of one value, which is reported once


def _heads(config: Any, model: ModelConfig) -> Iterator[Problem]:
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(hidden, int) or not isinstance(heads, int) or not hidden or not heads:
        return
    # transformers fills in a size that the recipe leaves out, by a division that rounds down.
    own_size = model.config.get("head_dim") or getattr(config, "head_dim", None)
    if hidden % heads and (own_size is None or ("head_dim" not in model.config and own_size == hidden // heads)):
        why = f"({heads}) does not divide {_name(config, model, 'hidden_size')} ({hidden})"
        yield _problem(config, model, "num_attention_heads", why, f"use one of {_divisors(hidden)}", heads)
    groups = getattr(config, "num_key_value_heads", None)
    if groups and heads % groups:
        why = f"does not divide {_name(config, model, 'num_attention_heads')} ({heads})"
        yield _problem(config, model, "num_key_value_heads", why, f"use one of {_divisors(heads)}", groups)
    width = getattr(config, "lru_width", None)
    if width and width % heads:
        why = f"is not a multiple of num_attention_heads ({heads})"
        yield _problem(config, model, "lru_width", why, f"use a multiple of {heads}", width)
    for name, unit in model.spec.tensor.splits if model.spec.tensor else ():
        count = getattr(config, name, None)
        if unit > 1 and count and count % unit:
            why = f"is not a multiple of {unit}, which the layout of {model.spec.title} asks for"
            yield _problem(config, model, name, why, f"use a multiple of {unit}", count)


def _rope_type(config: Any, model: ModelConfig) -> list[Problem]:
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return []
    by_layer = [part for part in rope.values() if isinstance(part, dict)]
    for value in (part.get("rope_type", "default") for part in by_layer or [rope]):
        if value in ROPE_TYPES:
            continue
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        if value not in ROPE_INIT_FUNCTIONS:
            near = difflib.get_close_matches(str(value), ROPE_TYPES, n=1, cutoff=0.7)
            fix = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ROPE_TYPES)}"
            name = "rope_scaling" if "rope_scaling" in model.config else "rope_parameters"
            why = "is not a scaling of rotary positions that transformers has"
            return [Problem(f"model.config.{name}.rope_type", why, fix, value)]
    return []


def _rotary(config: Any, model: ModelConfig) -> Iterator[Problem]:
    """Rotary embeddings rotate pairs of a head's features, so their number must be even and at most the head's size."""
    hidden, heads = getattr(config, "hidden_size", 0), getattr(config, "num_attention_heads", 0)
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads:
        return
    if hidden % heads and not getattr(config, "head_dim", None):
        return
    size = getattr(config, "head_dim", None) or hidden // heads
    fixed = getattr(config, "rotary_dim", None)
    if fixed is not None:
        if fixed > size or fixed % 2:
            why = f"must be even and at most the size of a head ({size})"
            yield _problem(config, model, "rotary_dim", why, f"use {size - size % 2} or less", fixed)
        return
    rope = getattr(config, "rope_parameters", None)
    if not isinstance(rope, dict):
        return
    share = rope.get("partial_rotary_factor")
    share = getattr(config, "partial_rotary_factor", None) if share is None else share
    share = 1.0 if share is None else share
    name = "rotary_pct" if "rotary_pct" in model.config else "partial_rotary_factor"
    if not 0 < share <= 1:
        why = "is the fraction of a head's features that positions rotate, so it must be above 0 and at most 1"
        yield _problem(config, model, name, why, "use a share such as 0.5", share)
    elif int(size * share) < 2 <= size:
        why = f"leaves fewer than two of a head's {size} features to rotate, and they rotate in pairs"
        yield _problem(config, model, name, why, f"use a share of at least {2 / size:g}", share)
    elif int(size * share) % 2 or int(size * share) < 2:
        why = f"gives {int(size * share)} rotated features per head ({size} x {share:g}), but they rotate in pairs"
        yield _problem(config, model, "num_attention_heads", why, "choose sizes that make this number even", heads)


def _special_tokens(config: Any, model: ModelConfig) -> Iterator[Problem]:
    for name in SPECIAL:
        given = model.config.get(name)
        for token in given if isinstance(given, list) else [given]:
            if isinstance(token, int) and not 0 <= token < getattr(config, "vocab_size", token + 1):
                why = f"is not a token: the vocabulary has {config.vocab_size}"
                yield Problem(f"model.config.{name}", why, "leave it out: the tokenizer's own is used", given)
                break


def _problem(config: Any, model: ModelConfig, name: str, why: str, fix: str, value: Any) -> Problem:
    return Problem(f"model.config.{_name(config, model, name)}", why, fix, value)


def _name(config: Any, model: ModelConfig, name: str) -> str:
    """Name of the field in recipes: the one that was written, else the family's own (``n_head``)."""
    return name if name in model.config else config.attribute_map.get(name, name)


def _divisors(number: int, most: int = 8) -> str:
    divisors = [str(size) for size in range(1, number + 1) if number % size == 0]
    return ", ".join(divisors[:most]) + (" ..." if len(divisors) > most else "")
