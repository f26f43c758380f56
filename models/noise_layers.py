"""Layer drop and stochastic depth that skip a module for individual samples, reproducibly.

Whether a sample skips a module is a function of (seed, step, sample, module). transformers drops a layer for a whole
micro-batch by a random number of each rank, so different ranks would run different layers. Here every rank runs all
layers, and a sample that skips a layer keeps the layer's input. Layer drop: https://arxiv.org/abs/1909.11556;
stochastic depth: https://arxiv.org/abs/1603.09382.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .noise import Noise, Site


def skip_samples(noise: Noise, site: Site, share: float, entered: Tensor, output: Any) -> Any:
    """The output of a block, with its input in place of it for a share of the samples.

    Args:
        entered: hidden states [samples, length, features] before the block.
        output: hidden states after it, alone or first in a tuple.
    """
    chances = noise.chances(site, entered.shape[1])
    if chances is None:
        return output
    skipped = chances < share
    skipped = skipped.view(*skipped.shape, *[1] * (entered.ndim - skipped.ndim))
    if isinstance(output, tuple):
        return (torch.where(skipped, entered, output[0]), *output[1:])
    return torch.where(skipped, entered, output)


def drop_path(noise: Noise, site: Site, share: float, hidden: Tensor) -> Tensor | None:
    """``hidden`` with zeros for a share of the samples, the others divided by 1 - share; None outside of training.

    Args:
        hidden: the branch of a residual connection, [samples, ...], or [samples x windows, ...].
    """
    rows = noise.rows_of(site, torch.Size((hidden.shape[0], 1)))
    if rows is None:
        return None
    return hidden * _factors(rows, share, hidden)


def _factors(rows: Tensor, share: float, hidden: Tensor) -> Tensor:
    from .noise_bits import chance

    kept = (chance(rows) >= share).to(hidden.dtype) / (1 - share)
    return kept.view(-1, *[1] * (hidden.ndim - 1))
