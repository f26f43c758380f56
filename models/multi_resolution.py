"""Multi-resolution attention (MRA-2, https://arxiv.org/abs/2207.10284) in plain torch operations, on any device.

A text is cut into blocks of 32 tokens. The mean query and the mean key of each block tell which pairs of blocks matter
most, and the attention of these pairs is computed token by token. In the mode ``full``, every other pair gets one
score, that of its mean query and mean key. In the mode ``sparse`` the other pairs are ignored. The number of exact
pairs is the budget, and time and memory are linear in it. If the budget covers all pairs, the result is softmax
attention.

Padding at the end of a text does not change the number of its exact pairs, so a padded text has the same outputs as the
text alone.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = 32
"""Tokens of a block."""
PRIOR = 1e4
"""Number added to the score of a pair that must be chosen; scores are far smaller."""


class Pairs(NamedTuple):
    """The chosen pairs of blocks of each head of each text."""

    rows: Tensor
    """[texts, heads, pairs], number of the block of queries."""
    columns: Tensor
    """[texts, heads, pairs], number of the block of keys."""
    counted: Tensor
    """[texts, heads, pairs], whether the pair is within the text's budget."""


def multi_resolution_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    real: Tensor | None,
    blocks_per_row: int,
    mode: Literal["full", "sparse"] = "full",
    first: int = 0,
    diagonal: int = 0,
) -> Tensor:
    """Outputs of attention [texts, heads, tokens, size], in the type of ``value``; 0 at padding.

    Args:
        query: [texts, heads, tokens, size], as ``key`` and ``value``.
        real: [texts, tokens], false at padding; None if there is none.
        blocks_per_row: chosen pairs for each block of a text, on average.
        first: number of first blocks whose pairs with any block are always chosen.
        diagonal: number of blocks, a block itself and its neighbours, with which its pairs are always chosen too.
    """
    length, size = query.shape[2:]
    real = torch.ones(query.shape[0], length, dtype=torch.bool, device=query.device) if real is None else real.bool()
    missing = -length % BLOCK
    real = torch.nn.functional.pad(real, (0, missing)).unflatten(1, (-1, BLOCK))  # [texts, blocks, 32]
    query, key, value = (_blocks(each, real, missing) for each in (query, key, value))
    query = query / math.sqrt(size)
    counts = real.sum(-1)  # [texts, blocks]
    coarse = _means(query, counts) @ _means(key, counts).transpose(-1, -2)  # [texts, heads, blocks, blocks]
    pairs = choose_pairs(coarse.detach(), counts > 0, blocks_per_row, first, diagonal)
    fine = _scores(query, key, real, pairs)
    left = _left(coarse, pairs, counts > 0) if mode == "full" else None
    read = _joined(fine, value, pairs, left, counts)
    return (read * real[:, None, :, :, None]).flatten(2, 3)[:, :, :length].to(value.dtype)


def choose_pairs(coarse: Tensor, there: Tensor, blocks_per_row: int, first: int = 0, diagonal: int = 0) -> Pairs:
    """The pairs with the highest scores of their means, compared with the highest one of their row.

    Args:
        coarse: [texts, heads, blocks, blocks], scores of means.
        there: [texts, blocks], whether a block has tokens.
    """
    texts, heads, blocks, _ = coarse.shape
    both = (there[:, None, :, None] & there[:, None, None, :]).expand_as(coarse)
    scores = coarse.masked_fill(~both, -math.inf)
    highest = scores.amax(-1, keepdim=True)
    scores = scores - highest.where(highest.isfinite(), 0.0)
    number = torch.arange(blocks, device=coarse.device)
    always = (number[:, None] < first) | (number < first)
    if diagonal:
        always |= (number[:, None] - number).abs() <= diagonal // 2
    scores = scores + PRIOR * always
    most = min(blocks_per_row * blocks, blocks * blocks)
    chosen = scores.flatten(2).topk(most, dim=-1).indices
    of_text = there.sum(1)
    budget = torch.minimum(blocks_per_row * of_text, of_text * of_text)[:, None, None]
    counted = (torch.arange(most, device=coarse.device) < budget).expand(texts, heads, most)
    return Pairs(chosen // blocks, chosen % blocks, counted)


def _blocks(states: Tensor, real: Tensor, missing: int) -> Tensor:
    """[texts, heads, blocks, 32, size] in fp32, with zeros at padding."""
    states = torch.nn.functional.pad(states, (0, 0, 0, missing)).unflatten(2, (-1, BLOCK))
    return states.float().masked_fill(~real[:, None, :, :, None], 0.0)


def _means(states: Tensor, counts: Tensor) -> Tensor:
    """Means over the tokens of each block [texts, heads, blocks, size]."""
    return states.sum(-2) / counts.clamp(min=1)[:, None, :, None]


def _picked(states: Tensor, numbers: Tensor) -> Tensor:
    """Blocks by number: [texts, heads, pairs, ...] of [texts, heads, blocks, ...]."""
    rest = states.shape[3:]
    index = numbers.view(*numbers.shape, *[1] * len(rest)).expand(*numbers.shape, *rest)
    return states.gather(2, index)


def _scores(query: Tensor, key: Tensor, real: Tensor, pairs: Pairs) -> Tensor:
    """Scores of the tokens in chosen pairs [texts, heads, pairs, 32, 32]; minus infinity where a key is padding."""
    scores = _picked(query, pairs.rows) @ _picked(key, pairs.columns).transpose(-1, -2)
    heads = pairs.rows.shape[1]
    seen = _picked(real[:, None].expand(-1, heads, -1, -1), pairs.columns) & pairs.counted[..., None]
    return scores.masked_fill(~seen[..., None, :], -math.inf)


def _left(coarse: Tensor, pairs: Pairs, there: Tensor) -> Tensor:
    """Scores of the means of pairs that were not chosen [texts, heads, blocks, blocks]; minus infinity at others."""
    blocks = coarse.shape[-1]
    taken = torch.zeros_like(coarse, dtype=torch.bool).flatten(2)
    # A pair beyond the budget stands for nothing; no pair is listed twice, so writing false over it is safe.
    taken = taken.scatter(2, pairs.rows * blocks + pairs.columns, pairs.counted).view_as(coarse)
    return coarse.masked_fill(taken | ~there[:, None, None, :], -math.inf)


def _joined(fine: Tensor, value: Tensor, pairs: Pairs, left: Tensor | None, counts: Tensor) -> Tensor:
    """Values weighted by the softmax shares of both resolutions [texts, heads, blocks, 32, size]."""
    texts, heads, blocks, _, size = value.shape
    highest = fine.new_full((texts, heads, blocks, BLOCK), -math.inf)
    rows = pairs.rows[..., None].expand(-1, -1, -1, BLOCK)
    highest = highest.scatter_reduce(2, rows, fine.detach().amax(-1), "amax")
    of_row = highest.new_full((texts, heads, blocks, 1), -math.inf) if left is None else left.detach().amax(-1, True)
    highest = torch.maximum(highest, of_row)
    highest = highest.where(highest.isfinite(), 0.0)
    shares = (fine - _picked(highest, pairs.rows)[..., None]).exp()
    read = shares @ _picked(value, pairs.columns)
    total = torch.zeros_like(highest).scatter_add(2, rows, shares.sum(-1))
    result = torch.zeros_like(value).scatter_add(2, rows[..., None].expand(-1, -1, -1, -1, size), read)
    if left is not None:
        weights = (left - of_row.where(of_row.isfinite(), 0.0)).exp() * counts[:, None, None, :]
        of_token = (of_row - highest).exp()
        total = total + of_token * weights.sum(-1, keepdim=True)
        result = result + of_token[..., None] * (weights @ _means(value, counts))[..., None, :]
    return result / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
