"""``Source``: the interface through which resume, evaluation and export read a checkpoint of any known format.

It gives tensors under trireme's names, fills them one by one or in groups, and reports the progress of training.
``load/own_checkpoint.py`` implements it for trireme's checkpoints, and ``foreign/`` has one small class for each format
of other tools.
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
from ...parallel.tensor_rows import Rows, plain
from .group_by_bytes import split_by_bytes


@dataclass
class Progress:
    """The progress of training in a checkpoint: all state that is not a tensor."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """Fields of ``TrainerState`` by name; missing ones keep their initial values."""
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of callbacks by their names in the recipe."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """State for ``Strategy.load`` that is not a tensor: ``loss_scale``, ``optimizer``."""
    notes: list[str] = field(default_factory=list)
    """Sentences on how inferred values were found; logged on resume."""


class Source(ABC):
    """Training state in one folder or file.

    Tensors are named ``model.<name>``, ``optim.<parameter>.<state>``, ``ema.<name>`` and ``lanes.<name>`` (states that
    a recurrent model carries from one batch to the next).
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit(self, model: PreTrainedModel) -> None:  # noqa: B027 (most formats do not need the model)
        """Prepare to translate names and numbers of tensors to those of ``model``; called before anything is read.

        Args:
            model: the whole model on the meta device.
        """

    @cached_property
    def shapes(self) -> Shapes:
        """Global shape and type of every tensor, by name."""
        return self.read_shapes()

    @abstractmethod
    def read_shapes(self) -> Shapes:
        """Compute ``shapes`` without reading any tensor.

        Raises:
            ValueError: a file cannot be read.
        """

    @abstractmethod
    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        """Fill ``tensors`` in place; a DTensor is filled with this rank's shard.

        Args:
            distributed: whether all ranks make this call together; they may ask for different names.

        Raises:
            ValueError: a tensor is missing or has another shape, or a file cannot be read.
        """

    def read_parts(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        """Like ``read``, but some of ``tensors`` may be ``Rows`` of a tensor, and then only these rows are filled. A
        format that cannot read single rows reads the whole tensor.

        Raises:
            ValueError: ``read`` fails.
        """
        rows = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Rows)}
        whole = {name: torch.empty(part.whole, dtype=part.dtype) for name, part in rows.items()}
        self.read({**tensors, **whole}, distributed)
        for name, part in rows.items():
            plain(part).copy_(whole.pop(name)[part.first : part.first + len(part)])

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        """The elements of the tensors in order, as flat blocks. A block is valid until the next one is requested.

        Each tensor gives one or more blocks.

        Args:
            limit: most bytes in memory at a time; a format that reads whole tensors may exceed it for a larger one.

        Raises:
            ValueError: ``read`` fails.
        """
        sizes = {name: self.shapes[name][0].numel() * self.shapes[name][1].itemsize for name in names}
        for group in split_by_bytes(sizes, limit):
            tensors = {name: torch.empty(self.shapes[name][0], dtype=self.shapes[name][1]) for name in group}
            self.read(tensors)
            while tensors:  # free each tensor after it was used
                yield tensors.pop(next(iter(tensors))).flatten()

    def check_read(self) -> None:  # noqa: B027 (most formats have nothing to check)
        """Called after all blocks have been read, to check that they are the right ones, such as the right base's.

        Raises:
            UserError: they are not.
        """

    def damage(self, names: list[str]) -> str | None:
        """The damage of the files that hold these tensors and the model's configuration; this reads the files.

        None if they are unchanged, or if the format has no digests.
        """
        return None

    @abstractmethod
    def progress(self) -> Progress:
        """The progress of training.

        Raises:
            ValueError: it cannot be read.
        """

    @property
    def assets(self) -> Path | None:
        """A folder with the model's config.json and the tokenizer, if there is one."""
        return None
