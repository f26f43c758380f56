"""Read trireme's own checkpoints. The class here implements ``Source``, the interface of all checkpoint readers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ....models.json_file import read_json
from ....parallel.strategy import Shapes
from ..layout import MODEL, STATE, TENSORS, files_of, verify
from ..source import Progress, Source
from .block_reader import StoredShards
from .read_tensors import read_tensors


class Checkpoint(Source):
    """A checkpoint that trireme wrote."""

    @cached_property
    def _shards(self) -> StoredShards:
        return StoredShards(self.path / TENSORS)

    def read_shapes(self) -> Shapes:
        return self._shards.shapes

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        read_tensors(tensors, self.path / TENSORS, distributed)

    def read_parts(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        self.read(tensors, distributed)  # torch's distributed checkpoint reads rows alone

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        return self._shards.blocks(names, limit)

    def damage(self, names: list[str]) -> str | None:
        files = {f"{TENSORS}/{file.name}" for file in self._shards.files(names)}
        return verify(self.path, only=files | {name for name in files_of(self.path) if name.startswith(f"{MODEL}/")})

    def progress(self) -> Progress:
        return Progress(**read_json(self.path / STATE))

    @property
    def assets(self) -> Path:
        return self.path / MODEL
