"""Compute hash keys that serve as random seeds for dropout masks and other noise of one micro-batch. Each vector along
a tensor's last axis, such as the hidden state of one token, gets a key of its own.

The first axis of a hidden state counts samples. The other axes are coordinates in a sample, and their indices in the
whole model's tensor are hashed into the key. So padding, micro-batch sizes and the number of ranks do not change the
noise of an element. In packed sequences, the key of a token is made of its document and its position in the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .noise_hash import index_keys, mix, number_keys, place_keys, text_key

Pair = tuple[Tensor, Tensor]
"""Two int32 keys of the same thing, which together hold 64 bits; coordinates are hashed into the first."""


@dataclass(frozen=True)
class Part:
    """The part of a tensor that one of several tensor ranks holds."""

    rank: int
    """Number of the tensor rank."""
    border: Any
    """Has ``sequence``: whether hidden states between the split parts are split by position now."""
    width: int
    """Features of whole hidden states."""
    features: bool = False
    """Whether hidden states are split by feature here, as between a column and a row projection."""
    gathered: bool = False
    """Whether sequences are never split here, as in the inputs of a projection."""
    ranks: int = 1
    """Number of tensor ranks."""
    groups: int = 1
    """Groups of heads, of each of which a rank holds some."""

    def heads(self, count: int, device: torch.device) -> Tensor:
        """Numbers of the ``count`` heads on this rank among all of them."""
        inside = count // self.groups
        own = torch.arange(inside, device=device) + self.rank * inside
        return (own + torch.arange(self.groups, device=device)[:, None] * inside * self.ranks).flatten()

    def first(self, shape: Sequence[int]) -> tuple[int, ...]:
        """For each axis, the index in the whole tensor of the first element on this rank."""
        if len(shape) == 4:
            split = 1  # attention probabilities are split by head
        elif self.features or shape[-1] not in (1, self.width):
            split = len(shape) - 1
        else:
            split = 1 if self.border.sequence and not self.gathered and len(shape) == 3 else -1
        return tuple(self.rank * size if axis == split else 0 for axis, size in enumerate(shape))


@dataclass
class MicroKeys:
    """Keys of the samples of one micro-batch, under the seed and the step of the run.

    They are made when a module draws for the first time, since most models draw nothing.
    """

    start: tuple[int, int]
    """``step_keys`` of the seed and the step."""
    samples: Tensor
    """Number of each row's sample, [rows], int64."""
    document_numbers: Tensor | None = None
    """Number of each token's document, [rows, length], int64, in packed rows; None if a row is one sample."""
    places: Tensor | None = None
    """Position of each token in its document, [rows, length], in packed rows."""
    lengths: Tensor | None = None
    """Tokens of the sample or document that a token belongs to, [rows, 1] or [rows, length]; None: the whole row."""
    target_lengths: Tensor | None = None
    """Number of tokens of each sample that the decoder reads, [rows, 1], in an encoder-decoder."""
    time_first: bool = False
    """Whether the model has hidden states [length, samples, features]."""
    visits: dict[int, int] = field(default_factory=dict)
    """How often each module was entered, since a forward pass may run a module several times."""
    found: dict[tuple, Pair] = field(default_factory=dict)
    """Cached results of ``of_rows``, by shape."""

    @cached_property
    def step(self) -> Pair:
        """Keys of (seed, step), [1]."""
        device = self.samples.device
        first, second = (torch.tensor([value], dtype=torch.int32, device=device) for value in self.start)
        return first, second

    @cached_property
    def rows(self) -> Pair:
        """Keys of each row's sample, [rows]."""
        return number_keys(self.samples, *self.start)

    @cached_property
    def documents(self) -> Pair | None:
        """Keys of each token's document, [rows, length], in packed rows; None if a row is one sample."""
        return None if self.document_numbers is None else number_keys(self.document_numbers, *self.start)

    def made(self) -> MicroKeys:
        """These keys, computed now: compiled blocks read them, and each would compute them anew."""
        for name in ("step", "rows", "documents"):
            getattr(self, name)
        return self

    def of_rows(self, shape: Sequence[int], part: Part | None = None) -> Pair:
        """Keys for the rows of a tensor of ``shape``: int32, of that shape without its last axis."""
        if part is not None and part.groups > 1 and len(shape) == 4:
            whole = self.of_rows((shape[0], shape[1] * part.ranks, *shape[2:]))
            heads = part.heads(shape[1], whole[0].device)
            return whole[0][:, heads], whole[1][:, heads]
        first = (0,) * len(shape) if part is None else part.first(shape)
        if torch.compiler.is_compiling():
            return self._of_rows(tuple(shape), first)
        key = (*shape, first)
        if key not in self.found:
            self.found[key] = self._of_rows(tuple(shape), first)
        return self.found[key]

    def of_samples(self, length: int, part: Part | None = None) -> Pair:
        """Keys of the documents of packed rows, [rows, length], else of the samples, [rows]."""
        if self.documents is None:
            return self.rows
        first = 0 if part is None else part.first((len(self.rows[0]), length, 1))[1]
        return self.documents[0][:, first : first + length], self.documents[1][:, first : first + length]

    def _of_rows(self, shape: tuple[int, ...], first: tuple[int, ...]) -> Pair:
        count, outer, inner = len(self.rows[0]), shape[0], shape[1:-1]
        if self.time_first and len(shape) > 2 and shape[1] == count:
            found = _inside(self.rows, (outer, *shape[2:-1]), (0, *first[2:-1]))
            return found[0].transpose(0, 1), found[1].transpose(0, 1)
        if outer == count:
            return self._of_tokens(inner, first[1:-1]) or _inside(self.rows, inner, first[1:-1])
        if outer and outer % count == 0:  # heads, windows or positions beside the samples, in one axis
            inner, first = (outer // count, *inner), (0, *first[1:-1])
            found = self._of_tokens(inner, first) or _inside(self.rows, inner, first)
            return found[0].flatten(0, 1), found[1].flatten(0, 1)
        # A tensor that samples share, such as embeddings of positions, is drawn once for all of them.
        found = _inside(self.step, (outer, *inner), (0, *first[1:-1]))
        return found[0].squeeze(0), found[1].squeeze(0)

    def _of_tokens(self, inner: tuple[int, ...], first: tuple[int, ...]) -> Pair | None:
        """Keys by token, if the last of the axes between samples and columns counts tokens of packed rows.

        Args:
            inner: (tokens,) of hidden states; (heads, queries) of attention probabilities.
        """
        if self.documents is None or self.places is None or len(inner) not in (1, 2):
            return None
        length = self.places.shape[1]
        if first[-1] + inner[-1] > length or (length % inner[-1] if len(inner) == 1 else inner[-1] != length):
            return None
        tokens = slice(first[-1], first[-1] + inner[-1])
        keys, others, places = self.documents[0][:, tokens], self.documents[1][:, tokens], self.places[:, tokens]
        if len(inner) == 2:
            heads = index_keys(inner[0], first[0], keys.device)
            keys, others, places = mix(keys[:, None] ^ heads[:, None]), others[:, None], places[:, None]
        keys = mix(keys ^ place_keys(places))
        return keys, others.expand_as(keys)


def micro_keys(
    step: tuple[int, int],
    samples: Tensor,
    documents: Tensor | None = None,
    places: Tensor | None = None,
    time_first: bool = False,
) -> MicroKeys:
    """The keys of a micro-batch.

    Args:
        step: ``step_keys`` of the seed and the step.
        samples: number of each row's sample, [rows], int64.
        documents: number of each token's document, [rows, length], int64, where rows are packed.
        places: position of each token in its document, [rows, length].
    """
    places = None if documents is None else places
    return MicroKeys(step, samples, documents, places, time_first=time_first)


def step_keys(seed: int, step: int) -> tuple[int, int]:
    """Two keys of an optimizer step of a run."""
    return text_key(seed, step, "first"), text_key(seed, step, "second")


def _inside(keys: Pair, sizes: Sequence[int], first: Sequence[int]) -> Pair:
    """Keys [rows, *sizes] of coordinates in each row, of which ``keys`` [rows] are given."""
    found, others = keys
    for size, start in zip(sizes, first, strict=True):
        found = mix(found.unsqueeze(-1) ^ index_keys(size, start, found.device))
        others = others.unsqueeze(-1)
    return found, others.expand_as(found)
