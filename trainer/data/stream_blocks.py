"""The blocks of tokens of a stream: cut from its documents, shuffled in windows, and shared out to the data ranks.

The position is where the window began in the source, plus how far into the window training is. Tokens that were
read but not yet used are not saved: their documents are read again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import Problem, UserError
from ...parallel.micro_batch import StepBatch
from .base_collator import Sample
from .corpus import TrainBatches
from .corpus_stats import cut_line
from .data_config import DataConfig
from .document_source import DocumentSource
from .loader import Batcher
from .sample_order import permute

log = logging.getLogger("trireme.data")
DOCUMENTS_AT_ONCE = 16
"""Documents that are tokenized together: enough to keep the tokenizer busy, few enough to read again on resume."""
Tokenize = Callable[[list[str]], list[list[int]]]
Keep = Callable[[str], bool]


class BlockReader(Iterator[np.ndarray]):
    """Blocks of one pass over a stream, and the position of the next one in it."""

    def __init__(
        self,
        source: DocumentSource,
        tokenize: Tokenize,
        keep: Keep,
        block_size: int,
        packing: bool,
        position: dict[str, Any] | None = None,
    ) -> None:
        """``position``: a value of ``position()``; None starts at the first document."""
        self.stream, self.tokenize, self.keep = source.stream(), tokenize, keep
        self.block_size, self.packing = block_size, packing
        self.source_state: dict[str, Any] | None = position["source"] if position else None
        if self.source_state is not None:
            self.stream.load_state_dict(self.source_state)
        self.texts = source.rows(iter(self.stream))
        # Read but not used up: [source state before it, documents (joined into one by packing), used of them].
        self.counts = {"documents": 0, "empty": 0, "cut": 0, "tokens": 0, "tokens cut": 0}  # since this reader began
        self.segments: deque[tuple[dict[str, Any] | None, list[np.ndarray]]] = deque()
        self.used = 0
        if position and position["used"]:
            self._fetch()
            self.used = position["used"]

    def position(self) -> dict[str, Any]:
        """Position of the next block: source state before its first batch of documents, and the used part of it."""
        if not self.segments:
            return {"source": self.source_state, "used": 0}
        return {"source": self.segments[0][0], "used": self.used}

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
        if not self.packing:
            lengths = [len(document) for document in documents]
            over = [length - self.block_size for length in lengths if length > self.block_size]
            for name, count in (("cut", len(over)), ("tokens", sum(lengths)), ("tokens cut", sum(over))):
                self.counts[name] += count
        if self.packing and documents:
            documents = [np.concatenate(documents)]
        if documents:
            self.segments.append((before, documents))
        return True

    def left_out(self) -> Iterator[str]:
        """Lines for the log on text of the documents read so far that is in no block."""
        counts = self.counts
        if counts["empty"]:
            yield f"{counts['empty']} document(s) of the stream hold no text (null or empty)"
        cut, of = (counts["cut"], counts["tokens cut"]), (counts["documents"], counts["tokens"])
        if line := cut_line("streamed", cut, of, self.block_size):
            yield line

    def __next__(self) -> np.ndarray:
        return self._next_packed() if self.packing else self._next_document()

    def _next_packed(self) -> np.ndarray:
        """The next block of concatenated documents; ``used`` counts tokens of the first segment."""
        while sum(len(documents[0]) for _, documents in self.segments) - self.used < self.block_size:
            if not self._fetch():
                raise StopIteration
        pieces, missing = [], self.block_size
        while missing:
            tokens = self.segments[0][1][0]
            piece = tokens[self.used : self.used + missing]
            pieces.append(piece)
            missing -= len(piece)
            self.used += len(piece)
            if self.used == len(tokens):
                self.segments.popleft()
                self.used = 0
        return np.concatenate(pieces)

    def _next_document(self) -> np.ndarray:
        """The next document as a block; ``used`` counts documents of the first segment."""
        while not self.segments:
            if not self._fetch():
                raise StopIteration
        documents = self.segments[0][1]
        block = documents[self.used][: self.block_size]
        self.used += 1
        if self.used == len(documents):
            self.segments.popleft()
            self.used = 0
        return block


class ShuffledBlocks(Iterator[Sample]):
    """Endless samples: windows of blocks, each in an order that follows from (seed, epoch, window)."""

    def __init__(
        self,
        open_reader: Callable[[dict[str, Any] | None], BlockReader],
        config: DataConfig,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.open_reader, self.config, self.seed = open_reader, config, seed
        self.epoch, self.window, self.offset = 0, 0, 0
        self.samples: list[Sample] = []
        if not state:
            self.reader = open_reader(None)
            self.start = self.reader.position()
            return
        self._check(state)
        self.epoch, self.window, self.offset = state["epoch"], state["window"], state["offset"]
        self.reader = open_reader(state["start"])
        self._fill()
        if self.offset > len(self.samples):
            raise UserError(
                Problem(
                    "data.source",
                    "is shorter than it was when the checkpoint was written",
                    "give the same documents to resume, or start a new run",
                )
            )

    def _check(self, state: dict[str, Any]) -> None:
        problems = [
            Problem(
                f"data.{name}",
                f"the checkpoint's stream was cut with {state[name]}",
                f"set data.{name}={state[name]} to resume, or start a new run",
                getattr(self.config, name),
            )
            for name in _CUT
            if state[name] != getattr(self.config, name)
        ]
        if problems:
            raise UserError(*problems)

    def state(self) -> dict[str, Any]:
        """Position of the next sample, as JSON."""
        return {
            "epoch": self.epoch,
            "window": self.window,
            "offset": self.offset,
            "start": self.start,
            **{name: getattr(self.config, name) for name in _CUT},
        }

    def __next__(self) -> Sample:
        if self.offset == len(self.samples):
            self._advance()
        self.offset += 1
        return self.samples[self.offset - 1]

    def _advance(self) -> None:
        """Fill the next window; at the end of the stream begin the next epoch (its last few tokens are dropped)."""
        if self.samples:
            self.window += 1
        self.offset = 0
        if self._fill():
            return
        if self.window == 0:
            raise UserError(
                Problem(
                    "data.block_size",
                    "the whole stream gives fewer tokens than one block",
                    "set a smaller data.block_size, or give more text",
                    self.config.block_size,
                )
            )
        self.epoch, self.window = self.epoch + 1, 0
        self.reader = self.open_reader(None)
        self._fill()

    def _fill(self) -> int:
        self.start = self.reader.position()
        blocks = list(islice(self.reader, self.config.shuffle_window))
        if self.epoch == 0 and (self.window == 0 or not blocks):  # early, and again at the end of the first pass
            for line in self.reader.left_out():
                log.info("so far, %s" if blocks else "%s", line)
        order = np.arange(len(blocks))
        if self.config.shuffle:
            order = permute(order, max(len(blocks), 1), self.seed, self.epoch, self.window)
        first = self.window * self.config.shuffle_window
        self.samples = [{"input_ids": blocks[place], "index": first + int(place)} for place in order]
        return len(blocks)


_CUT = ("block_size", "shuffle_window", "packing", "shuffle")


class Stream(Iterator[Sample], Protocol):
    """Endless samples with a position."""

    def state(self) -> dict[str, Any]:
        """Position of the next sample, as JSON."""
        ...


class StreamBatches(TrainBatches):
    """One data rank's share of each step of a stream."""

    def __init__(
        self,
        samples: Stream,
        batcher: Batcher,
        *,
        first: int,
        steps: int,
        global_batch_size: int,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        if global_batch_size % data_size:
            raise ValueError(
                f"global_batch_size={global_batch_size} does not divide over {data_size} data ranks; "
                f"use a multiple of {data_size}"
            )
        share = global_batch_size // data_size
        self.samples, self.batcher, self.position, self.steps_left = samples, batcher, first, steps
        self.global_batch_size = global_batch_size
        self.mine = slice(data_rank * share, (data_rank + 1) * share)

    def __next__(self) -> StepBatch:
        if self.steps_left <= 0:
            raise StopIteration
        self.steps_left -= 1
        samples = [
            {**sample, "position": self.position + place}
            for place, sample in enumerate(islice(self.samples, self.global_batch_size))
        ]
        self.position += self.global_batch_size
        batch = self.batcher(samples[self.mine])
        return batch.pin_memory() if torch.accelerator.is_available() else batch

    def state(self) -> dict[str, Any]:
        return self.samples.state()
