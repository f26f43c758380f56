"""``Noise`` makes dropout, layer drop, stochastic depth and NEFTune noise the same under every parallelism plan.
Kernels and modules that draw random numbers themselves are excepted, and the log names them.

``Noise`` knows the seed, the step, the micro-batch and the running module. While a micro-batch runs, it replaces
``torch.nn.functional.dropout``, the function that all dropout layers of torch, transformers and adapters call. Each
mask is then a function of (seed, step, sample, module, coordinates in the sample). ``attach_noise`` tells ``Noise``
which module is running.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .noise_bits import Columns, chance, dropout
from .noise_hash import mix, signed
from .noise_keys import MicroKeys, Pair, Part, micro_keys, step_keys

log = logging.getLogger("trireme.models")
TORCHS_DROPOUT = F.dropout
DRAW, VISIT = 0x9E3779B9, 0x85EBCA6B
"""Difference between the keys of a module's consecutive draws, and between those of its consecutive runs."""
BY_SAMPLE = -1
"""Number of the draw that gives one random number per sample. Draws of dropout masks are numbered from 0 on."""


@dataclass
class Site:
    """A module that draws random numbers."""

    name: str
    """Path of the module in the whole model."""
    key: Tensor
    """int32, without dimensions: a tensor, so that one compiled graph serves all blocks."""
    part: Part | None = None
    """The part of the hidden states that this tensor rank holds; None if it holds all."""


class Noise:
    """The source of a model's noise on one rank."""

    def __init__(self, neftune_alpha: float | None = None, compiled: bool = False) -> None:
        self.neftune_alpha = neftune_alpha
        self.compiled = compiled
        """Whether blocks of the model are compiled."""
        self.time_first = False
        """Whether the model has hidden states [length, samples, features]."""
        self.notes: list[str] = []
        """Sentences for the log about noise of the model that still depends on the plan."""
        self.keys: MicroKeys | None = None
        """Keys of the micro-batch that runs; None outside of training's forward and backward passes."""
        self.site: Site | None = None
        """The module that runs."""
        self.number = 0
        """Draws of ``site`` so far, since it was entered."""
        self.visit = 0
        """How often ``site`` has run before, for this micro-batch."""
        self.functions = {
            "dropout": self.dropout,
            **dict.fromkeys(("dropout1d", "dropout2d", "dropout3d"), self.feature_dropout),
        }
        """Replacements of functions of ``torch.nn.functional``. They are always the same objects, so that compiled
        blocks recognise them."""
        self._step = (0, 0)
        self._warned = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Noise:
        return self  # copies of a model, such as its pipeline stages, draw from the same source

    def begin_step(self, seed: int, step: int) -> None:
        """Must be called before the micro-batches of an optimizer step."""
        self._step = step_keys(seed, step)

    def keys_of(
        self,
        samples: Tensor,
        documents: Tensor | None = None,
        places: Tensor | None = None,
        lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
    ) -> MicroKeys:
        """The keys of a micro-batch; arguments as in ``micro_keys``, lengths as in ``MicroKeys``."""
        if documents is not None and self.neftune_alpha:
            lengths = document_lengths(documents)
        found = micro_keys(self._step, samples, documents, places, self.time_first)
        found.lengths, found.target_lengths = lengths, target_lengths
        return found.made() if self.compiled else found

    @contextmanager
    def running(self, keys: MicroKeys | None) -> Iterator[None]:
        """The context in which modules run a micro-batch, forward or backward; None: nothing is drawn by keys."""
        before = self.keys, self.site, self.number, self.visit
        self.keys, self.site, self.number, self.visit = keys, None, 0, 0
        try:
            with self.in_place():
                yield
        finally:
            self.keys, self.site, self.number, self.visit = before

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The context in which torch's functional dropouts are replaced by those of this object."""
        before = {name: getattr(F, name) for name in self.functions}
        try:
            for name, function in self.functions.items():
                setattr(F, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(F, name, function)

    def with_same_noise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A version of ``function`` that draws the same noise each time: it runs part of the forward pass now, and is
        recomputed in the backward pass, when other micro-batches may have run in between."""
        keys = self.keys
        if keys is None:
            return function
        visits, before = dict(keys.visits), (self.site, self.number, self.visit)
        calls = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                return function(*args, **kwargs)
            same = copy.copy(keys)  # with the keys that were computed, which ``dataclasses.replace`` would drop
            same.visits = dict(visits)
            with self.running(same):
                self.site, self.number, self.visit = before
                return function(*args, **kwargs)

        return run

    # -- what modules call -------------------------------------------------------------------------------------

    def dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """``torch.nn.functional.dropout`` with a mask by keys; outside of a known module, torch's own."""
        if not training or p == 0 or self.keys is None or self.site is None or not input.ndim:
            if training and p > 0:
                self._warn()
            return TORCHS_DROPOUT(input, p, training, inplace)
        if input.ndim == 1:
            return self.dropout(input[:, None], p).squeeze(1)
        part = self.site.part
        rows = self._mixed(self.keys.of_rows(input.shape, part), self.number)
        self.number += 1
        return dropout(input, rows, self._columns(input, part), p)

    def feature_dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """Drop whole features of [samples, features, ...], as ``dropout1d`` to ``dropout3d`` of torch do."""
        if not training or p == 0:
            return input
        factors = self.dropout(torch.ones_like(input[(..., *[0] * (input.ndim - 2))]), p)
        return input * factors.view(*factors.shape, *[1] * (input.ndim - 2))

    def chances(self, site: Site, length: int) -> Tensor | None:
        """A number in (0, 1) for each sample [rows], or for each token of packed rows [rows, length], equal in a
        document; None outside of training."""
        if self.keys is None:
            return None
        return chance(self._mixed(self.keys.of_samples(length, site.part), BY_SAMPLE, site))

    def rows_of(self, site: Site, shape: torch.Size) -> Tensor | None:
        """Keys of the rows of a tensor of ``shape`` that ``site`` adds noise to; None outside of training."""
        return None if self.keys is None else self._mixed(self.keys.of_rows(shape), BY_SAMPLE, site)

    def _warn(self) -> None:
        if not self._warned:
            log.warning("a dropout outside of every known module is drawn by data rank: it differs between plans")
            self._warned = True

    def _mixed(self, keys: Pair, number: int, site: Site | None = None) -> Tensor:
        """Keys under the module that runs and the number of its draw."""
        site = site or self.site
        assert site is not None
        own = site.key + signed(number * DRAW + self.visit * VISIT)
        if own.device != keys[0].device and torch.compiler.is_compiling():
            own = own.to(keys[0].device)
        return mix(mix(keys[0] ^ own) + keys[1])

    def _columns(self, input: Tensor, part: Part | None) -> Columns:
        first = 0 if part is None else part.first(input.shape)[-1]
        places = self.keys.places if self.keys is not None else None
        if input.ndim != 4:
            return Columns(first)
        if places is not None and places.shape[1] == input.shape[-1] and len(places) == input.shape[0]:
            return Columns(places=places[:, None, None], pairs=False)
        return Columns(first, pairs=False)


def document_lengths(documents: Tensor) -> Tensor:
    """Tokens, in its row, of the document that each token belongs to: [rows, length], from the documents' numbers."""
    length = documents.shape[1]
    first = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    order = torch.arange(length, device=documents.device)
    starts = torch.where(first, order, 0).cummax(1).values
    next_starts = F.pad(torch.where(first, order, length)[:, 1:], (0, 1), value=length)
    return next_starts.flip(1).cummin(1).values.flip(1) - starts
