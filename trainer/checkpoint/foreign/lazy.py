"""The base class of readers that get whole tensors from other tools' checkpoints.

Each rank reads one whole tensor at a time, only when it is needed, and keeps its own part of it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....parallel.strategy import Shapes
from ....parallel.tensor_shards import copy_part
from ..source import Source
from .mapped_memory import let_go_of_files


class Lazy(NamedTuple):
    """A tensor that is read only when ``make`` is called."""

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]


class WholeTensors(Source):
    """Every rank reads whole tensors, one at a time, and keeps its part, without communication."""

    model: PreTrainedModel | None = None

    def fit(self, model: PreTrainedModel) -> None:
        self.model = model
        forget(self, "entries", "shapes")

    @cached_property
    def entries(self) -> dict[str, Lazy]:
        """Every tensor, by its name in the common layout."""
        try:
            return self.collect()
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: has an unexpected layout ({error!r})") from None

    @abstractmethod
    def collect(self) -> dict[str, Lazy]:
        """Compute ``entries`` without reading any tensor.

        Raises:
            ValueError: a file cannot be read, or what it holds does not fit together.
        """

    def read_shapes(self) -> Shapes:
        return {name: (entry.shape, entry.dtype) for name, entry in self.entries.items()}

    @torch.no_grad()
    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        for name, tensor in tensors.items():
            check_fit(name, tensor, self.shapes, self.path)
            copy_part(self.entries[name].make(), tensor)

    @torch.no_grad()
    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        touched = 0
        for name in names:
            whole = self.entries[name].make()
            yield whole.flatten()
            touched += whole.nbytes
            if touched >= limit:
                touched = 0
                let_go_of_files(self.path)


def forget(source: Source, *cached: str) -> None:
    """Drop cached properties: the model that they depend on has changed."""
    for name in cached:
        if name in vars(source):
            delattr(source, name)


def check_fit(name: str, tensor: Tensor, shapes: Shapes, path: Path) -> None:
    """Raises ValueError when ``name`` is missing or has another shape."""
    if name not in shapes:
        raise ValueError(f"{name} is not in {path}")
    if shapes[name][0] != tensor.shape:
        raise ValueError(
            f"{name} has shape {tuple(shapes[name][0])} in {path}, but the model needs {tuple(tensor.shape)}"
        )


def lazily(tensor: Tensor) -> Lazy:
    """Wrap a tensor that is in memory or mapped from a file."""
    return Lazy(tensor.shape, tensor.dtype, lambda: tensor)


def counter(value: float | Tensor) -> Lazy:
    """Wrap a step counter as a scalar in fp32, the form in which all plans keep it."""
    return lazily(torch.as_tensor(value, dtype=torch.float32).reshape(()))
