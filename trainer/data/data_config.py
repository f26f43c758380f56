"""The ``data`` section of a recipe: its data sources and evaluation sets, and how their texts or rows are split,
ordered and prepared.

This file imports nothing heavy, since every command reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ...errors import refuse
from ..component import Component
from .chat.chat_config import ChatConfig
from .mixed_source import MixedSource, mixture_flaws
from .text_config import MOST_TOKENS, TextConfig

TRAIN, HELD_OUT, TEST = "train", "held_out", "test"
"""Names of the sets that every recipe may have."""
MOST_PROCESSES = 1024
"""More than any machine runs beside its training."""


@dataclass
class DataConfig(TextConfig):
    """Source of the documents, and how they become samples."""

    ALTERNATIVES: ClassVar = (("source", "sources"), ("source", "loader"), ("sources", "loader"))
    source: Component | None = None
    """Source of the documents: a class of ``trireme.trainer.data.sources``, or your own. Give this or ``sources``."""
    sources: dict[str, MixedSource] | None = None
    """Several sources that are mixed by weights, by names of your choice."""
    loader: Component | None = None
    """A loader of your own in place of ``source``, which gives finished samples for training and evaluation in an order
    of its own (docs/extending.md)."""
    order: Component | None = None
    """An order of your own in which the samples of ``source`` are trained on: a function from positions to indices
    (docs/extending.md); null takes ``shuffle``."""
    eval_source: Component | None = None
    """Separate source of held-out documents, which replaces ``held_out``; null holds out a share of ``source``."""
    eval_sets: dict[str, Component] = field(default_factory=dict)
    """Further sources to evaluate on, by a name of your choice; their metrics are called ``eval_<name>_<metric>``."""
    test_source: Component | None = None
    """Source of the test set, which only ``trireme evaluate --on test`` and ``trireme predict --on test`` read."""
    columns: dict[str, str] = field(default_factory=dict)
    """Name that the task uses for a column -> name of the column in the source, for tasks that learn from rows."""
    chat: ChatConfig | None = None
    """How rows of conversations become texts, and what is learnt of them (docs/chat.md); null for other data."""
    labels: list[str] | None = None
    """Names of the labels, in order; null takes those of the data set, else all that occur, sorted."""
    samples: dict[str, Any] = field(default_factory=dict)
    """Options of the samples that the task makes of rows, such as ``prefix`` of ``text_pair_rows.TextPairs``."""
    processor: str | None = None
    """Local folder or hub name of an image processor or audio feature extractor; null takes the one of the weights, or
    else one made for the model's configuration."""
    image_size: int | None = None
    """Height and width of images for a processor that is made for the model; null takes those of its configuration,
    where it has one."""
    sampling_rate: int | None = None
    """Samples per second of audio, for a feature extractor that is made for the model; null takes 16,000."""
    held_out: float = 0.05
    """Share of documents kept for evaluation, chosen by a hash of their text; 0 keeps none."""
    deduplicate: bool = True
    """Drop documents that repeat an earlier one, and train documents that also occur in ``eval_source``."""
    seed: int | None = None
    """Seed of the order of samples and of what collators draw; null takes the recipe's ``seed``, which also decides
    initial weights and noise."""
    shuffle: bool = True
    """Shuffle samples in an order that depends on seed and epoch; false keeps the order of the source, as
    ``packing=lanes`` does in any case."""
    group_by_length: bool = False
    """Make steps of samples of similar length, so that little is padded; for samples that do not share rows."""
    streaming: bool = False
    """Read documents during training instead of preparing all of them before it."""
    shuffle_window: int = 1024
    """Number of consecutive blocks among which a stream is shuffled."""
    num_workers: int = 0
    """Loader processes per rank. Memory-mapped blocks are read in microseconds, so 0 is rarely slower."""
    num_proc: int = 1
    """Processes that tokenize. The tokenizer itself runs threads, so 1 uses all cores too."""
    cache_dir: str | None = None
    """Folder for prepared data; null takes $TRIREME_CACHE, or ~/.cache/trireme."""

    def __post_init__(self) -> None:
        self.packing = self.packing if self.packing != "blocks" else True  # one value for one thing, in checkpoints too
        refuse(self._problems())

    def parts(self) -> dict[str, DataConfig]:
        """The configuration of each of ``sources`` alone, in the order of their names; only the first has the sets to
        evaluate on."""
        entries = sorted((self.sources or {}).items())
        return {
            name: replace(self, source=entry.source, sources=None, eval_sets={} if number else self.eval_sets)
            for number, (name, entry) in enumerate(entries)
        }

    def _problems(self) -> list[str]:
        found = [*self._flaws_of_sources(), *self._text_flaws()]
        least_of = {
            "shuffle_window": 1,
            "num_workers": 0,
            "num_proc": 1,
            "image_size": 1,
            "sampling_rate": 1,
        }
        for name, least in least_of.items():
            if (value := getattr(self, name)) is not None and value < least:
                found.append(f"{name}={value} is below {least}; set it to at least {least}")
        for name in ("num_workers", "num_proc"):
            if (value := getattr(self, name)) > MOST_PROCESSES:
                found.append(f"{name}={value} is more than {MOST_PROCESSES} processes; use fewer")
        if self.shuffle_window > MOST_TOKENS:
            found.append(f"shuffle_window={self.shuffle_window} is above {MOST_TOKENS}; use a smaller number")
        if not 0 <= self.held_out < 1:
            found.append(
                f"held_out={self.held_out} is not a share of the documents; set it to at "
                "least 0 and below 1, such as 0.05"
            )
        for name in self.eval_sets:
            if name in (TRAIN, HELD_OUT, TEST) or not name.isidentifier():
                found.append(
                    f"eval_sets={name!r} is wrong because a name of a set is a word of letters, digits and "
                    f"underscores other than {HELD_OUT}, {TEST} and {TRAIN}; choose another name"
                )
        if self.streaming and self.eval_sets:
            found.append(
                "eval_sets is wrong with streaming=true because a stream evaluates on its own documents; use "
                "eval_source, or streaming=false"
            )
        if self.streaming and self.deduplicate:
            found.append(
                "deduplicate=true is wrong with streaming=true because a stream is never seen as a whole; "
                "set deduplicate=false, or streaming=false"
            )
        if self.overflow != "cut":
            found += self._flaws_of_overflow()
        if self.group_by_length:
            found += self._flaws_of_grouping()
        if self.packing == "lanes":
            found += self._flaws_of_lanes()
        if self.streaming and self.num_workers:
            found.append(
                f"num_workers={self.num_workers} is wrong with streaming=true because every rank reads the "
                "stream in order; set num_workers=0"
            )
        if self.streaming and self.tokenizer.path is None and self.tokenizer.sample_documents is None:
            found.append(
                "tokenizer.sample_documents=null is wrong with streaming=true because training a tokenizer "
                "would read the whole stream; set a number such as 10000, or tokenizer.path"
            )
        return found

    def _flaws_of_overflow(self) -> Iterator[str]:
        if self.chat is not None:
            other = "chat.too_long=drop" if self.overflow == "drop" else "chat.too_long=cut, drop or refuse"
            yield (
                f"overflow={self.overflow} has no effect beside chat because chat.too_long={self.chat.too_long} tells "
                f"what happens with long conversations; set {other}, and leave overflow out"
            )
        elif self.packing != "bins":
            yield f"overflow={self.overflow} is for rows of whole documents; set packing=bins, or leave it out"

    def _flaws_of_grouping(self) -> Iterator[str]:
        if self.streaming:
            yield (
                "group_by_length=true is wrong with streaming=true because a stream is never seen as a whole; set "
                "packing=bins, whose rows are full, or streaming=false"
            )
        if self.sources is not None:
            yield (
                "group_by_length=true is wrong with sources because a step holds samples of every source; set "
                "packing=bins, whose rows are full, or leave it out"
            )

    def _flaws_of_lanes(self) -> Iterator[str]:
        others = {
            "streaming=true": (self.streaming, "a stream has no length that could be cut into lanes"),
            "sources": (self.sources is not None, "a step of a mixture holds samples of every source"),
            "order": (self.order is not None, "lanes are an order of their own"),
            "group_by_length=true": (self.group_by_length, "lanes are an order of their own"),
            "loader": (self.loader is not None, "a loader gives finished samples in its own order"),
            "chat": (self.chat is not None, "conversations do not go on from each other"),
        }
        for name, (there, why) in others.items():
            if there:
                yield f"packing=lanes is wrong beside {name} because {why}; leave {name.partition('=')[0]} out"

    def _flaws_of_loader(self) -> Iterator[str]:
        given = {
            "source": self.source is not None,
            "sources": self.sources is not None,
            "order": self.order is not None,
            "eval_source": self.eval_source is not None,
            "eval_sets": bool(self.eval_sets),
            "test_source": self.test_source is not None,
            "chat": self.chat is not None,
            "streaming": self.streaming,
            "group_by_length": self.group_by_length,
            f"packing={self.packing}": self.separates,
        }
        for name in (name for name, there in given.items() if there):
            yield (
                f"loader is wrong beside {name} because a loader gives finished samples in its own order, and those "
                "that are held out; leave one of them out"
            )

    def _flaws_of_sources(self) -> Iterator[str]:
        if self.sources is not None:
            yield from mixture_flaws(self.sources)
        if self.loader is not None:
            yield from self._flaws_of_loader()
        if self.order is not None:
            for name, taken in (
                ("sources", self.sources is not None),
                ("streaming", self.streaming),
                ("group_by_length", self.group_by_length),
                ("packing=bins", self.packing == "bins"),
            ):
                if taken:
                    yield f"order is wrong beside {name} because that has an order of its own; leave one of them out"
        if self.source is not None and self.sources is not None and self.loader is None:
            yield "sources is wrong beside source because a run has one of them; leave one of them out"
        if self.source is None and self.sources is None and self.loader is None:
            yield "source=None is required, since a run needs data; choose some (data=files), or write data.sources"
