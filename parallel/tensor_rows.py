"""``Rows``: consecutive rows of a larger tensor, so that a distributed checkpoint writes or reads only these rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem


class Rows(Tensor):
    """Consecutive rows of a larger tensor, for torch's distributed checkpoints; made by ``rows_of``."""

    first: int
    """Index in the whole tensor of the first row."""
    whole: torch.Size
    """Shape of the whole tensor."""

    def size(self, dim: int | None = None) -> Any:
        """The size of the whole tensor, as for a DTensor: a reader compares it with the file's. ``shape`` is that of
        the rows."""
        return self.whole if dim is None else self.whole[dim]

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        (chunk,) = self.__create_chunk_list__()
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(plain(self)), self.whole)
        return [WriteItem(MetadataIndex(fqn, chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(torch.Size((self.first, *[0] * (self.dim() - 1))), self.shape)]

    def __get_tensor_shard__(self, _: MetadataIndex) -> Tensor:
        return plain(self)


def rows_of(values: Tensor, first: int, whole: torch.Size) -> Tensor:
    """Mark ``values`` as rows of a larger tensor.

    Args:
        values: consecutive rows, or the whole tensor, which is returned unmarked.
        first: index of their first row in the whole tensor.
        whole: shape of the whole tensor.
    """
    if values.shape == whole:
        return values
    rows = values.as_subclass(Rows)
    rows.first, rows.whole = first, whole
    return rows


def plain(tensor: Tensor) -> Tensor:
    """The values of ``Rows`` as an ordinary tensor."""
    return tensor.as_subclass(Tensor)
