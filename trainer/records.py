"""Gather a record of each evaluated sample on rank 0, in the order of the data set, for predictions and scores.

Ranks send their records every few micro-batches. Rank 0 keeps large numbers of records in a file, so that memory does
not grow with the data set.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..parallel.mesh import Mesh

AT_ONCE = 32
"""Micro-batches after which the ranks send their records."""
IN_MEMORY = 4 * 2**20
"""Bytes of records beyond which a file holds them."""
Record = dict[str, Any]
"""Plain values of one sample (numbers, texts, lists), with ``index``, its place in the data set."""


class Records:
    """Collects the records of a set; all ranks call ``gather`` equally often."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.count = mesh, 0
        self.waiting: list[Record] = []
        # Ranks of one tensor group have the same outputs, so one of them keeps the records.
        self.keeps = mesh.index("tensor") == 0
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY, mode="w+b")  # noqa: SIM115 (closed in close)

    def add(self, samples: Tensor, parts: dict[str, Any], per_sample: int = 1) -> None:
        """Keep the records of a micro-batch.

        Args:
            samples: place of each row's sample in the data set; -1 for those that only fill places.
            parts: name -> a tensor [rows, ...], or a list with a value per row.
            per_sample: rows of each sample; of several, a record holds a list of their values.
        """
        if not self.keeps or not parts:
            return
        lists = {name: plain(value) for name, value in parts.items()}
        if per_sample > 1:
            starts = range(0, len(samples), per_sample)
            lists = {name: [value[at : at + per_sample] for at in starts] for name, value in lists.items()}
            samples = samples[::per_sample]
        for row, index in enumerate(samples.tolist()):
            if index >= 0:
                self.waiting.append({"index": index, **{name: values[row] for name, values in lists.items()}})

    def gather(self) -> None:
        """Bring the waiting records of all ranks to rank 0; a collective call.

        All ranks have finished the same micro-batches, so those that come later have greater places.
        """
        waiting, self.waiting = self.waiting, []
        arrived = self.mesh.gather_objects(waiting)
        if self.mesh.is_main:
            for record in sorted((one for part in arrived for one in part), key=lambda record: record["index"]):
                self.file.write(json.dumps(record).encode() + b"\n")
                self.count += 1

    def __iter__(self) -> Iterator[Record]:
        """The records on rank 0, and none on others."""
        self.file.seek(0)
        for line in self.file:
            yield json.loads(line)
        self.file.seek(0, 2)

    def close(self) -> None:
        """Delete the file."""
        self.file.close()


def plain(value: Any) -> list[Any]:
    """A tensor [samples, ...], or another sequence, as a list with a value per sample."""
    if isinstance(value, Tensor):
        value = value.float() if value.is_floating_point() else value
        return value.tolist()
    return list(value)
