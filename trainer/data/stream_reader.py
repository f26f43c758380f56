"""Read a stream of documents one by one or as blocks of tokens, with a position from which reading can resume.

The position consists of a state of the source and the number of tokens or documents used since. Tokens that were read
but not yet used are not saved; their documents are read again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from .corpus_stats import cut_line
from .document_bins import overflow_line, pieces
from .document_source import DocumentSource
from .text_config import TextConfig

DOCUMENTS_AT_ONCE = 16
"""Documents that are tokenized together: enough to keep the tokenizer busy, few enough to read again on resume."""
Tokenize = Callable[[list[str]], list[list[int]]]
Keep = Callable[[str], bool]


class BlockReader(Iterator[list[np.ndarray]]):
    """Blocks of one pass over a stream, each as a list of its pieces of documents. Without joining documents
    (``packing=bins`` or false) an item is one document, or a part of one."""

    def __init__(
        self,
        source: DocumentSource,
        tokenize: Tokenize,
        keep: Keep,
        config: TextConfig,
        position: dict[str, Any] | None = None,
    ) -> None:
        """``position``: a value of ``position()``; None starts at the first document."""
        self.stream, self.tokenize, self.keep = source.stream(), tokenize, keep
        self.config, self.block_size = config, config.block_size
        self.joins = config.packing in (True, "separate_blocks")
        self.source_state: dict[str, Any] | None = position["source"] if position else None
        if self.source_state is not None:
            self.stream.load_state_dict(self.source_state)
        self.texts = source.rows(iter(self.stream))
        self.counts = {"documents": 0, "empty": 0, "cut": 0, "tokens": 0, "tokens cut": 0}  # since this reader began
        # Read but not used up: source state before it, and documents.
        self.segments: deque[tuple[dict[str, Any] | None, list[np.ndarray]]] = deque()
        self.used = 0  # of the first segment: tokens if documents are joined, else documents
        if position and position["used"]:
            self._fetch()
            self.used = position["used"]

    def position(self) -> dict[str, Any]:
        """Position of the next block: source state before its first batch of documents, and the used part of it."""
        if not self.segments:
            return {"source": self.source_state, "used": 0}
        return {"source": self.segments[0][0], "used": self.used}

    def left_out(self) -> Iterator[str]:
        """Lines for the log on text of the documents read so far that is in no block."""
        counts = self.counts
        if counts["empty"]:
            yield f"{counts['empty']} document(s) of the stream hold no text (null or empty)"
        cut, of = (counts["cut"], counts["tokens cut"]), (counts["documents"], counts["tokens"])
        if self.config.packing == "bins":
            line = overflow_line("streamed", self.config.overflow, self.block_size, cut, of)
        else:
            line = cut_line("streamed", cut, of, self.block_size)
        if line:
            yield line

    def __next__(self) -> list[np.ndarray]:
        return self._next_block() if self.joins else [self._next_document()]

    def _fetch(self) -> bool:
        """Read and tokenize the next documents; False at the end of the stream."""
        before = self.source_state
        texts = list(islice(self.texts, DOCUMENTS_AT_ONCE))
        if not texts:
            return False
        self.source_state = self.stream.state_dict()
        self.counts["empty"] += sum(not text for text in texts)
        kept = [text for text in texts if text and self.keep(text)]
        documents = [np.asarray(ids, np.int32) for ids in self.tokenize(kept)]
        self.counts["documents"] += len(documents)
        if not self.joins:
            documents = [part for document in documents for part in self._parts(document)]
        if documents:
            self.segments.append((before, documents))
        return True

    def _parts(self, document: np.ndarray) -> list[np.ndarray]:
        """The parts of a document that go into rows."""
        size, length = self.block_size, len(document)
        parts = [document[:size]]
        if self.config.packing == "bins":
            lengths = pieces(np.array([length]), size, self.config.overflow).lengths.tolist()
            parts = [document[first * size :][:part] for first, part in enumerate(lengths) if part]
        self.counts["cut"] += length > size
        self.counts["tokens"] += length
        self.counts["tokens cut"] += length - sum(map(len, parts))
        return parts

    def _next_block(self) -> list[np.ndarray]:
        """The next block of consecutive documents; ``used`` counts tokens of the first segment."""
        while sum(map(_size, self.segments)) - self.used < self.block_size:
            if not self._fetch():
                raise StopIteration
        found, missing = [], self.block_size
        while missing:
            used = self.used
            for document in self.segments[0][1]:
                if len(piece := document[used : used + missing]):
                    found.append(piece)
                    missing, self.used = missing - len(piece), self.used + len(piece)
                used = max(used - len(document), 0)
            if self.used == _size(self.segments[0]):
                self.segments.popleft()
                self.used = 0
        return found

    def _next_document(self) -> np.ndarray:
        """The next document; ``used`` counts documents of the first segment."""
        while not self.segments:
            if not self._fetch():
                raise StopIteration
        documents = self.segments[0][1]
        document = documents[self.used]
        self.used += 1
        if self.used == len(documents):
            self.segments.popleft()
            self.used = 0
        return document


def _size(segment: tuple[Any, list[np.ndarray]]) -> int:
    return sum(map(len, segment[1]))
