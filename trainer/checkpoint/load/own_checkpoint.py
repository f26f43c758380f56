"""Read what trireme itself has written, as ``Source`` asks for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ....parallel.strategy import Shapes
from ..layout import MODEL, STATE, TENSORS, files_of, verify
from ..source import Progress, Source
from .block_reader import Pieces
from .read_tensors import read_tensors


class Checkpoint(Source):
    """A checkpoint that trireme wrote."""

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.path / TENSORS)

    def read_shapes(self) -> Shapes:
        return self._pieces.shapes

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        read_tensors(tensors, self.path / TENSORS, distributed)

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        return self._pieces.blocks(names, limit)

    def damage(self, names: list[str]) -> str | None:
        files = {f"{TENSORS}/{file.name}" for file in self._pieces.files(names)}
        return verify(self.path, only=files | {name for name in files_of(self.path) if name.startswith(f"{MODEL}/")})

    def progress(self) -> Progress:
        return Progress(**json.loads((self.path / STATE).read_text()))

    @property
    def assets(self) -> Path:
        return self.path / MODEL
