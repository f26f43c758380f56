"""Training state to go on from, whoever wrote it.

Resume, evaluation and export know this interface only: tensors by the names of the common layout, filled one by one or
in groups wherever a plan wants them, and where training stood. ``load/own_checkpoint.py`` implements it for what
trireme writes; every format of somebody else is one small class in ``foreign/``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...parallel.strategy import Shapes
from .tensors import split_by_bytes


@dataclass
class Progress:
    """Where training stood."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of ``TrainerState`` by name; what is absent keeps its value of a run that has not begun."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of callbacks by their names in the recipe."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """What ``Strategy.load`` takes beside tensors: ``loss_scale``, ``optimizer``."""
    notes: list[str] = field(default_factory=list)
    """How this was found out, where it is not simply written; logged on resume."""


class Source(ABC):
    """State in one folder (or file). Names are ``model.<name>``, ``optim.<parameter>.<state>``, ``ema.<name>``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit(self, model: PreTrainedModel) -> None:  # noqa: B027 (most formats need not know it)
        """Called once before anything is read, where the model is known: others name and number its tensors otherwise.

        Args:
            model: the whole model on the meta device.
        """

    @cached_property
    def shapes(self) -> Shapes:
        """Global shape and type of every tensor, by name."""
        return self.read_shapes()

    @abstractmethod
    def read_shapes(self) -> Shapes:
        """As ``shapes``; reads no tensor.

        Raises:
            ValueError: a file cannot be read.
        """

    @abstractmethod
    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        """Fill ``tensors`` in place; DTensors with this rank's part.

        Args:
            distributed: all ranks call it together; they may ask for different names.

        Raises:
            ValueError: a tensor is missing or has another shape, or a file cannot be read.
        """

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        """The tensors one after the other, flat, each in one or more blocks; a block holds until the next is asked for.

        Args:
            limit: most bytes in memory at a time, or the largest tensor where whole ones have to be read.

        Raises:
            ValueError: as ``read``.
        """
        sizes = {name: self.shapes[name][0].numel() * self.shapes[name][1].itemsize for name in names}
        for group in split_by_bytes(sizes, limit):
            tensors = {name: torch.empty(self.shapes[name][0], dtype=self.shapes[name][1]) for name in group}
            self.read(tensors)
            while tensors:  # hand each tensor over and let go of it
                yield tensors.pop(next(iter(tensors))).flatten()

    def damage(self, names: list[str]) -> str | None:
        """Why what the files say of these tensors (and of the model) is not what was written; None if it is, or if the
        format has no means to know. Reads the files."""
        return None

    @abstractmethod
    def progress(self) -> Progress:
        """Where training stood.

        Raises:
            ValueError: it cannot be read.
        """

    @property
    def assets(self) -> Path | None:
        """A folder with the model's config.json and the tokenizer, if there is one."""
        return None
