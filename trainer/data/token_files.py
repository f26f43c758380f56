"""Store the tokens of a corpus on disk, and read samples from them without copying.

All documents are concatenated in one Arrow file with a single integer column, in record batches of equal length. The
file is memory-mapped, so opening it is fast, and ranks on one machine share the memory. A block of tokens is a numpy
view; only a block that spans two record batches is copied. Block size and packing are not part of the file, so changing
them needs no new preparation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .base_collator import Sample

BATCH = 1 << 22
"""Values in a record batch."""


def write_column(path: str, arrays: Iterable[np.ndarray], dtype: np.dtype | type, batch: int = BATCH) -> int:
    """Write concatenated 1-D arrays as an Arrow file, with one record batch in memory; returns the number of values."""
    with ColumnWriter(path, dtype, batch) as column:
        for array in arrays:
            column.add(array)
    return column.length


class ColumnWriter:
    """Writes 1-D arrays end to end into an Arrow file, with one record batch in memory. Used as a context."""

    def __init__(self, path: str, dtype: np.dtype | type, batch: int = BATCH) -> None:
        self.path, self.length = path, 0
        self._buffer, self._filled = np.empty(batch, dtype), 0

    def __enter__(self) -> ColumnWriter:
        import pyarrow as pa

        self._files = ExitStack()
        self._schema = pa.schema([("values", pa.from_numpy_dtype(self._buffer.dtype))])
        sink = self._files.enter_context(pa.OSFile(self.path, "wb"))
        self._writer = self._files.enter_context(pa.ipc.new_file(sink, self._schema))
        return self

    def add(self, array: np.ndarray) -> None:
        """Write the values of an array behind those before."""
        while len(array):
            taken = min(len(array), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = array[:taken]
            array, self._filled, self.length = array[taken:], self._filled + taken, self.length + taken
            if self._filled == len(self._buffer):
                self._flush()

    def __exit__(self, *error: object) -> None:
        if self._filled and error[0] is None:
            self._flush()
        self._files.close()

    def _flush(self) -> None:
        import pyarrow as pa

        values = pa.array(self._buffer[: self._filled])
        self._writer.write_batch(pa.record_batch([values], schema=self._schema))
        self._filled = 0


class Column:
    """A memory-mapped column that ``write_column`` has written. It is pickled as its path."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self.path = path
        with pa.memory_map(path) as source:
            reader = pa.ipc.open_file(source)
            batches = [reader.get_batch(number).column(0) for number in range(reader.num_record_batches)]
        self.parts: list[np.ndarray] = [_view(batch) for batch in batches]
        self.batch = len(self.parts[0]) if self.parts else 1
        self.length = sum(map(len, self.parts))

    def __len__(self) -> int:
        return self.length

    def __reduce__(self) -> tuple[type[Column], tuple[str]]:
        return Column, (self.path,)

    def cut(self, start: int, stop: int) -> np.ndarray:
        """Values ``[start, stop)``, read-only; a view unless they span several record batches."""
        stop = min(stop, self.length)
        first, last = start // self.batch, (stop - 1) // self.batch
        if first >= last:
            return self.parts[first][start - first * self.batch : stop - first * self.batch] if stop > start else _EMPTY
        pieces = (self.parts[number] for number in range(first, last + 1))
        return np.concatenate(list(pieces))[start - first * self.batch : stop - first * self.batch]

    def not_above(self, value: int) -> int:
        """Number of values that are at most ``value``, in a column that rises."""
        full = sum(1 for part in self.parts if part[-1] <= value)
        if full == len(self.parts):
            return self.length
        return full * self.batch + int(np.searchsorted(self.parts[full], value, side="right"))


def _view(array: Any) -> np.ndarray:
    """The values of an integer array of pyarrow, without a copy. Its own ``to_numpy`` would import pandas, which takes
    30 MiB of each rank, and a third of a second."""
    kind = np.dtype(str(array.type))
    return np.frombuffer(array.buffers()[1], kind, len(array), array.offset * kind.itemsize)


_EMPTY = np.empty(0, np.int32)


class _Samples(Dataset[Sample]):
    """Base of data sets with samples by index; ``__getitems__`` saves the loader a call per sample."""

    def cut(self, index: int) -> np.ndarray:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return {"input_ids": self.cut(index), "index": index}

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self[index] for index in indices]


class PackedBlocks(_Samples):
    """Blocks of ``block_size`` consecutive tokens; the remainder at the end is dropped."""

    def __init__(self, tokens: Column, block_size: int) -> None:
        self.tokens, self.block_size = tokens, block_size

    def __len__(self) -> int:
        return len(self.tokens) // self.block_size

    def cut(self, index: int) -> np.ndarray:
        return self.tokens.cut(index * self.block_size, (index + 1) * self.block_size)


class DocumentBlocks(_Samples):
    """One document per sample, truncated to ``block_size`` tokens."""

    def __init__(self, tokens: Column, ends: Column, block_size: int) -> None:
        """``ends[i]`` is the position in ``tokens`` after document i."""
        self.tokens, self.ends, self.block_size = tokens, ends, block_size

    def __len__(self) -> int:
        return len(self.ends)

    def beyond(self) -> tuple[int, int]:
        """Number of documents longer than a block, and of their tokens beyond it."""
        documents, tokens, end = 0, 0, 0
        for ends in self.ends.parts:
            lengths = np.diff(ends, prepend=end)
            over = lengths[lengths > self.block_size] - self.block_size
            documents, tokens = documents + len(over), tokens + int(over.sum())
            end = int(ends[-1]) if len(ends) else end
        return documents, tokens

    def cut(self, index: int) -> np.ndarray:
        start = int(self.ends.cut(index - 1, index)[0]) if index else 0
        stop = int(self.ends.cut(index, index + 1)[0])
        return self.tokens.cut(start, min(stop, start + self.block_size))
