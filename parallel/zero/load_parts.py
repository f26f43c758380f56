"""Load weights and optimizer state from a checkpoint into a DeepSpeed engine; each rank reads its own part of a split
tensor, and little more.

A rank of ZeRO holds a range of each flattened tensor. It reads the rows that this range touches instead of the whole
tensor, so the bytes that a rank reads shrink with the number of ranks. Tensors that are not split are read whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..strategy import Read
from ..tensor_rows import plain, rows_of
from .full_tensors import EngineState, numel, shape_of

READ_AT_ONCE = 256 * 2**20
"""Bytes of state that are read from a checkpoint at once."""
WEIGHT = "model"
"""Stands for the weight among the keys of a parameter's optimizer state."""


def load_parameters(
    state: EngineState,
    parameters: dict[str, nn.Parameter],
    numbers: set[str],
    saved: dict[str, dict[str, Any]],
    read: Read,
) -> None:
    """Set all weights and their optimizer state; a collective call.

    Args:
        parameters: by their names in the checkpoint.
        numbers: names of those that are numbers in the checkpoint, and vectors of one element here.
        saved: (shape, type) of the optimizer state in the checkpoint, by parameter name and key.
        read: fills tensors from the checkpoint.
    """
    for names in _in_portions(parameters):
        portion = {name: _Part(state, parameters[name], name in numbers, saved.get(name, {})) for name in names}
        read({_stored(name, key): tensor for name, part in portion.items() for key, tensor in part.tensors.items()})
        for part in portion.values():
            part.set()
    state.loaded()


class _Part:
    """The tensors of one parameter and its optimizer state that a rank reads."""

    def __init__(
        self, state: EngineState, parameter: nn.Parameter, is_number: bool, saved: dict[str, tuple[Any, torch.dtype]]
    ) -> None:
        self.state, self.parameter, self.is_number = state, parameter, is_number
        self.shape = shape_of(parameter)
        self.split: set[str] = set()
        """Keys of which this rank sets its own range."""
        if state.loads_parts(parameter) and not is_number:
            moments = {key for key in state.moments(parameter) if key in saved and saved[key][0] == self.shape}
            self.split = {WEIGHT} | moments
        weight = torch.Size([]) if is_number else self.shape, torch.float32
        self.tensors: dict[str, Tensor] = {}
        """Tensors to read, by key; a key is left out if this rank holds nothing of it."""
        for key, (shape, dtype) in {WEIGHT: weight, **saved}.items():
            if key not in self.split:
                self.tensors[key] = torch.empty(shape, dtype=dtype)
            elif self._rows != (0, 0):
                first, end = self._rows
                self.tensors[key] = rows_of(torch.empty(end - first, *shape[1:], dtype=dtype), first, self.shape)

    @property
    def _rows(self) -> tuple[int, int]:
        """(first, end) of the rows that this rank's range touches."""
        begin, end = self.state.held(self.parameter)
        row = self.shape.numel() // self.shape[0]
        return (begin // row, -(-end // row)) if begin < end else (0, 0)

    def set(self) -> None:
        """Pass the tensors that were read to the engine."""
        whole = {key: tensor for key, tensor in self.tensors.items() if key not in self.split}
        if WEIGHT in whole:
            self.state.load_weight(self.parameter, whole.pop(WEIGHT).view(self.shape))
        if self.is_number:
            whole = {key: value.view(self.shape) if key != "step" else value for key, value in whole.items()}
        self.state.load_state(self.parameter, whole)
        for key in sorted(self.split):
            self.state.load_part(self.parameter, None if key == WEIGHT else key, self._own(key))
        self.tensors.clear()

    def _own(self, key: str) -> Tensor:
        """This rank's elements of the weight or state ``key``, flat."""
        if key not in self.tensors:
            return torch.empty(0)
        begin, end = self.state.held(self.parameter)
        first = self._rows[0] * (self.shape.numel() // self.shape[0])
        return plain(self.tensors[key]).flatten()[begin - first : end - first]


def _stored(name: str, key: str) -> str:
    return f"model.{name}" if key == WEIGHT else f"optim.{name}.{key}"


def _in_portions(parameters: dict[str, nn.Parameter]) -> Iterator[list[str]]:
    """Lists of names whose weights and moments fit into ``READ_AT_ONCE``, in the same order on every rank."""
    portion, size = [], 0
    for name, parameter in parameters.items():
        needed = 3 * 4 * numel(parameter)
        if portion and size + needed > READ_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(name)
        size += needed
    yield portion
