"""A corpus that mixes several data sources in the proportions of their weights.

The weights decide which source each position of the training stream reads (``mixture_order.py``). If the earlier
positions have read n samples of this source, the position reads the source's next sample. Each source has epochs of its
own and is shuffled anew in each, so a small source with a large weight is repeated more often than a large source. The
mixture is a function of (seed, position).

The held-out set holds the held-out samples of all sources. Its metrics weight each source by its share in training,
however many held-out samples it has.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ...models.facts import Facts
from ...parallel.micro_batch import MicroBatch
from ..component import Component
from ..settings import TrainerConfig
from .base_collator import Sample
from .content_stamp import hash_json
from .corpus import Corpus, CorpusByIndex, TrainBatches
from .corpus_stats import joined_stats
from .data_config import HELD_OUT, TRAIN, DataConfig
from .loader import evaluation_batches
from .mixed_source import of_source
from .mixture_order import Interleave, MixedOrder, seed_of
from .report.mixture_facts import joined_facts
from .report.set_facts import SetFacts
from .report.views import Collated
from .stream_blocks import ShuffledBlocks, StreamBatches
from .streaming import StreamingCorpus

if TYPE_CHECKING:
    from ..tasks.task import Task

log = logging.getLogger("trireme.data")


class Joined(Dataset[Sample]):
    """Data sets one after the other. Indices run through all of them; where samples differ from pass to pass, an index
    beyond the end means the next pass."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = list(parts)
        self.starts = [0, *accumulate(len(part) for part in self.parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Sample:
        turn, rest = divmod(index, len(self))
        number, within = self.place(rest)
        sample = self.parts[number][within + turn * len(self.parts[number])]
        if "documents" in sample:  # those of the data sets in turn, so that each has a number of its own
            sample = {**sample, "documents": sample["documents"] * len(self.parts) + number}
        if "numbers" in sample:
            sample = {**sample, "numbers": sample["numbers"] * len(self.parts) + number}
        return {**sample, "index": index}

    def place(self, index: int) -> tuple[int, int]:
        """Number of the data set that holds ``index``, and the index there."""
        number = bisect_right(self.starts, index) - 1
        return number, index - self.starts[number]


class Section(Dataset[Sample]):
    """One of the data sets of ``Joined``, whose samples keep their index among all."""

    def __init__(self, joined: Joined, number: int) -> None:
        self.joined, self.number = joined, number

    def __len__(self) -> int:
        return len(self.joined.parts[self.number])

    def __getitem__(self, index: int) -> Sample:
        return self.joined[self.joined.starts[self.number] + index]


class Mixture(Corpus):
    """Sources that are mixed by weights; each is a corpus of its own (a part), all with one processor."""

    parts: Sequence[Any]
    """Corpora of the sources, in the order of ``interleave.names``."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        model: Any,
        parts: Mapping[str, Corpus],
    ) -> None:
        self.interleave = interleave_of(config)
        self.names, self.parts = self.interleave.names, [parts[name] for name in self.interleave.names]
        self.length, self.samples = self.parts[0].length, self.parts[0].samples
        super().__init__(config, seed, settings, collator, task, self.parts[0].processor, model)
        self.mixture, self.unit = self, self.parts[0].unit
        self.stats = joined_stats([part.stats for part in self.parts])
        # The documents of an evaluation source belong to no source of the mixture.
        self.splits = config.eval_source is None and all(part.has_held_out for part in self.parts)
        self.has_held_out = bool(self.eval_sets)
        self._read: Joined | None = None  # the held-out samples of the last evaluation

    @property
    def facts(self) -> Facts:
        return self.parts[0].facts

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source in the samples."""
        return self.interleave.shares

    def sources_of(self, positions: Sequence[int]) -> list[int]:
        """Number of the source at each position of the stream, as in ``names``."""
        return self.interleave.sources(np.asarray(positions, np.int64)).tolist()

    def prints(self) -> dict[str, Any]:
        prints = {name: part.prints() for name, part in zip(self.names, self.parts, strict=True)}
        alike = next(iter(prints.values()))
        own = [what for what in ("documents", "tokens", "media") if any(what in each for each in prints.values())]
        joined = {what: hash_json([[name, each.get(what)] for name, each in prints.items()]) for what in own}
        counts = [each.get("counts", {}) for each in prints.values()]
        added = {"counts": {what: sum(each[what] for each in counts) for what in counts[0]}} if counts[0] else {}
        return {**alike, **joined, **added, "mixture": self.shares}

    # -- the held-out set -------------------------------------------------------------------------------------

    @property
    def eval_sets(self) -> list[str]:
        return self.parts[0].eval_sets

    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        if name != HELD_OUT or not self.splits:
            return self.parts[0].eval_batches(limit, data_rank, data_size, name)
        return chain.from_iterable(self.source_batches(source, limit, data_rank, data_size) for source in self.names)

    def source_batches(
        self, source: str, limit: int | None, data_rank: int = 0, data_size: int = 1
    ) -> Iterator[MicroBatch]:
        """The held-out samples of one source among the ``limit`` ones of an evaluation."""
        number, self._read = self.names.index(source), self.held_out_samples(limit)
        return evaluation_batches(
            Section(self._read, number),
            self.collator,
            limit=self._wanted(limit)[number],
            micro_batch_size=self.eval_micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def factors(self, limit: int | None) -> dict[str, float]:
        """Source -> the factor by which sums over its held-out samples count, so that sources weigh by their shares; 1
        for the one with the most samples for its share. Empty if the held-out set is not that of the sources."""
        if not self.splits:
            return {}
        sizes = (len(part) for part in self.held_out_samples(limit).parts)
        wanted = self._wanted(limit)
        taken = [size if most is None else min(size, most) for size, most in zip(sizes, wanted, strict=True)]
        weighed = {name: self.shares[name] / count for name, count in zip(self.names, taken, strict=True)}
        return {name: weight / min(weighed.values()) for name, weight in weighed.items()}

    def _wanted(self, limit: int | None) -> list[int | None]:
        """Held-out samples of each source that an evaluation asks for: by the shares, and at least one."""
        return [None] * len(self.names) if limit is None else list(self.interleave.wanted(limit))

    @abstractmethod
    def held_out_samples(self, limit: int | None) -> Joined:
        """Held-out samples of all sources, of each at least the first ones that an evaluation of ``limit`` takes."""

    def shown(self, index: int, name: str = HELD_OUT) -> dict[str, Any]:
        if name != HELD_OUT or not self.splits:
            return self.parts[0].shown(index, name)
        read = self.held_out_samples(None) if self._read is None else self._read
        number, within = read.place(index)
        return {"data_source": self.names[number], **self.parts[number].shown(within, name)}

    # -- for people -------------------------------------------------------------------------------------------

    def describe(self, name: str) -> SetFacts:
        if name != TRAIN and not (name == HELD_OUT and self.splits):
            return self.parts[0].describe(name)
        of = {}
        for source, part in zip(self.names, self.parts, strict=True):
            facts, samples = part.describe(name), part.train_size if name == TRAIN else part.stats.held_out_blocks
            of[source] = facts, samples, self.shares[source]
        return joined_facts(name, of)

    def views(self, sample: Collated) -> Mapping[str, Any]:
        views = self.parts[0].views(sample)
        if sample.position is None:
            return views
        (number,) = self.sources_of([sample.position])
        return {"data_source": self.names[number], **views}

    def lines(self, samples: int) -> Iterator[str]:
        """A line for each source on its share of the first ``samples`` samples, and on its passes."""
        for number, (name, count) in enumerate(zip(self.names, self.interleave.counts(samples).tolist(), strict=True)):
            size = self.parts[number].train_size
            of = f": {count / size:.3g} passes over its {size}" if size else ""
            yield f"source {name}: {self.shares[name]:.2%} of the samples, {count} in this run{of}"


class IndexedMixture(Mixture, CorpusByIndex):
    """A mixture of prepared documents or rows."""

    parts: Sequence[CorpusByIndex]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.train, self.held_out = (
            Joined([getattr(part, split) for part in self.parts]) for split in ("train", "held_out")
        )
        self.train_size = len(self.train)
        sizes = {name: len(part.train) for name, part in zip(self.names, self.parts, strict=True)}
        self.order = MixedOrder(self.interleave, sizes, self.seed, self.config.shuffle, self.config.separates)

    def eval_set(self, name: str) -> Any:
        return self.parts[0].eval_set(name)

    def held_out_samples(self, limit: int | None) -> Joined:
        return self.held_out


class StreamedMixture(Mixture):
    """A mixture of streams; each keeps a window of its own."""

    parts: Sequence[StreamingCorpus]
    train_size = None

    def train_batches(
        self, state: dict[str, Any], samples: int, steps: int, data_rank: int = 0, data_size: int = 1
    ) -> TrainBatches:
        saved = state.get("sources", {})
        blocks = [
            part.blocks(saved.get(name, {}), seed_of(self.seed, name))
            for name, part in zip(self.names, self.parts, strict=True)
        ]
        mixed = MixedBlocks(dict(zip(self.names, blocks, strict=True)), self.interleave, samples if saved else 0)
        if samples and not saved:
            log.info("no position of the streams is known: reading %d samples again", samples)
            deque(islice(mixed, samples), maxlen=0)
        return StreamBatches(
            mixed,
            self.batcher,
            first=samples,
            steps=steps,
            global_batch_size=self.global_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def held_out_samples(self, limit: int | None) -> Joined:
        wanted = self._wanted(limit)
        return Joined([part.first_held_out(count) for part, count in zip(self.parts, wanted, strict=True)])


class MixedBlocks(Iterator[Sample]):
    """Endless samples of several streams, from a position on."""

    def __init__(self, blocks: Mapping[str, ShuffledBlocks], interleave: Interleave, position: int) -> None:
        self.blocks, self.interleave, self.position = blocks, interleave, position
        self._order = list(blocks.values())

    def state(self) -> dict[str, Any]:
        return {"sources": {name: blocks.state() for name, blocks in self.blocks.items()}}

    def __next__(self) -> Sample:
        number = int(self.interleave.sources(np.asarray(self.position)))
        with of_source(self.interleave.names[number]):
            sample = next(self._order[number])
        self.position += 1
        return sample


def interleave_of(config: DataConfig) -> Interleave:
    """The interleave of a recipe's mixture."""
    return Interleave({name: entry.weight for name, entry in (config.sources or {}).items()})
