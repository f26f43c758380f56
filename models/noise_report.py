"""Find the random operations of a model whose random numbers differ between parallelism plans, and describe them for
the log.

An example is attention dropout that is drawn inside a fused kernel.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .find_random_calls import random_parts

FUSED = "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
"""Kernels that draw the dropout of attention themselves."""


def rank_notes(model: nn.Module) -> list[str]:
    """One sentence for each kind of noise that is drawn from generators seeded by (seed, step, data rank)."""
    notes = []
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel in FUSED and (share := attention_dropout(model)):
        notes.append(
            f"attention dropout ({share:g}) is drawn inside the kernel {kernel}, by data rank: it differs between "
            "plans; model.attention=eager draws it by sample"
        )
    other: dict[str, tuple[str, ...]] = {}
    for module in model.modules():
        found = random_parts(type(module)).other
        if found and not is_drop_path(module) and getattr(module, "jitter_noise", None) != 0:
            other[type(module).__name__] = found
    if other:
        named = ", ".join(f"{name} ({', '.join(found)})" for name, found in sorted(other.items()))
        notes.append(f"these modules may draw random numbers of their own, by data rank: {named}")
    return notes


def is_drop_path(module: nn.Module) -> bool:
    """Whether ``module`` is stochastic depth, which transformers writes anew for each architecture."""
    name = type(module).__name__
    return ("DropPath" in name or "StochasticDepth" in name) and hasattr(module, "drop_prob")


def attention_dropout(model: nn.Module) -> float:
    """The greatest share of attention probabilities that the configuration of ``model`` drops."""
    from transformers import PreTrainedConfig

    def parts(config: Any) -> list[Any]:
        inner = [
            part for value in vars(config).values() if isinstance(value, PreTrainedConfig) for part in parts(value)
        ]
        return [config, *inner]

    config = getattr(model, "config", None)
    shares = [
        value
        for part in (parts(config) if isinstance(config, PreTrainedConfig) else [])
        for name, value in vars(part).items()
        if ("attn" in name or "attention" in name) and "drop" in name and isinstance(value, float)
    ]
    return max(shares, default=0.0)
