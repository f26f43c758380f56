"""``Collator``, the base class of collators, which make micro-batches of samples. Helpers give a collator its random
numbers, and blank the targets of samples that only fill a batch.

A sample is a dict with the columns of one item. Its ``index`` is the item's place in the data set, and its ``position``
is the sample's place in the endless stream of samples that a run trains on. A collator takes its random numbers from
``draws(seed, position)``, so they do not depend on the worker or the rank, and are the same after a resume.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import Problem
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch, map_tensors

Sample = dict[str, Any]
"""Columns of one sample, and ``index`` and ``position``."""
CONTRACT = "see docs/extending.md: a collator gives a list of MicroBatch when called with a step's samples, and has "
CONTRACT += "micro_batch(samples)"


def is_ours(thing: Any) -> bool:
    """Whether a class, or the class of an object, is one of trireme."""
    return str((thing if isinstance(thing, type) else type(thing)).__module__).startswith("trireme.")


def wrong_collator(name: str, why: str) -> Problem:
    """The problem of a collator that does not keep its contract."""
    return Problem("collator", why, CONTRACT, name)


class Collator(ABC):
    """Makes micro-batches; the engine passes what the constructor takes (``constructor_values.GIVEN``)."""

    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """One data rank's share of a step, cut into micro-batches in order."""
        return [self.micro_batch(group) for group in self.groups(samples)]

    @abstractmethod
    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """Samples of one forward pass."""

    def groups(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """``samples`` in micro-batches, in order."""
        size = self.micro_batch_size
        return [samples[first : first + size] for first in range(0, len(samples), size)]


def positions(samples: Sequence[Sample]) -> Tensor:
    """Positions of samples in the endless stream (int64)."""
    return torch.tensor([sample.get("position", sample["index"]) for sample in samples], dtype=torch.int64)


def draws(seed: int, position: int, purpose: str) -> np.random.Generator:
    """A random generator for one sample, which depends on seed, position and purpose only."""
    key = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def without_targets(micro: MicroBatch, real: int) -> MicroBatch:
    """``micro`` without targets for its filler samples, those from ``real`` on, so that they add nothing to a sum.

    Whole numbers become ``IGNORE``, other numbers NaN, and truth values false.
    """
    beside = None if micro.beside is None else without_targets(micro.beside, real)
    real *= micro.per_sample
    if real == micro.rows:
        return micro

    def blanked(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[real:] = nothing(tensor.dtype)
        return tensor

    samples = micro.samples.clone()
    samples[real:] = -1
    return replace(micro, targets=map_tensors(micro.targets, blanked), samples=samples, beside=beside)


def nothing(dtype: torch.dtype) -> Any:
    """The value of ``dtype`` that marks a missing target."""
    if dtype is torch.bool:
        return False
    return float("nan") if dtype.is_floating_point else IGNORE
