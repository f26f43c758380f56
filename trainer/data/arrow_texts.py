"""Write a stream of texts to an Arrow file, and open the file as a memory-mapped data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Dataset

BYTES_AT_ONCE, TEXTS_AT_ONCE = 1 << 23, 10_000


def write_texts(texts: Iterable[str], cache_dir: str) -> Dataset:
    """Write texts into a data set with the column ``text``, with a few MiB of memory."""
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([("text", pa.large_string())])
    path = Path(cache_dir) / "documents.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        pending: list[str] = []
        size = 0
        for text in texts:
            pending.append(text)
            size += len(text)
            if size > BYTES_AT_ONCE or len(pending) >= TEXTS_AT_ONCE:
                writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema=schema))
                pending, size = [], 0
        writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema=schema))
    return Dataset.from_file(str(path))
