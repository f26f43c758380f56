"""``Samples``, the base class of the classes that turn rows of a data set into training samples.

There is one such class for each kind of data. It names the columns it needs, holds the processor (tokenizer, image
processor, feature extractor), and makes one sample of one row. Samples are made when they are read, so only the rows
are prepared beforehand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from .base_collator import Sample
from .data_config import DataConfig
from .media_files import MediaFiles, paths_in
from .report.sample_views import sample_views
from .report.set_facts import LABEL
from .report.views import Collated

if TYPE_CHECKING:
    from datasets import Dataset

    from .packed_rows import Binned


@dataclass(frozen=True)
class MadeRows:
    """Rows of which samples are made, with notes on them."""

    rows: Dataset
    """Rows that ``sample`` takes, without those that are left out."""
    notes: tuple[str, ...] = ()
    """Lines on rows that were left out or cut."""
    lengths: np.ndarray | None = None
    """Length of the sample of each row, in ``unit`` (int64); None if it is not known."""
    digest: str | None = None
    """Digest of what was made, which a resume compares; None if samples follow from rows and recipe."""
    files: MediaFiles | None = None
    """The files of images and audio clips, if they had to be found; None leaves this to ``Samples.media_files``."""


@dataclass(frozen=True)
class Given:
    """The values that the engine passes to ``Samples``."""

    config: DataConfig
    """The recipe's ``data`` part."""
    rows: Dataset
    """Rows to train on, with the wanted columns."""
    cache: Path
    """Folder of the cache, for what is learnt from the rows once, such as a tokenizer."""
    print: str
    """Fingerprint of the rows."""
    weights: Path | None
    """Folder of the model's weights, with its own processors; None if training begins with random weights."""
    model: Any
    """The model's transformers configuration."""


class Samples(ABC):
    """Makes samples of rows."""

    columns: ClassVar[dict[str, bool]]
    """Columns by the names that the task uses -> whether every row must have it."""
    unit: ClassVar[str] = "tokens"
    """Name of what a sample's length counts."""
    length: int | None = None
    """Greatest length of a sample, in ``unit``; None if it is not known."""
    made_of: ClassVar[dict[str, str]] = {}
    """Inputs and targets -> the columns that they are made of, for ``views``."""
    label_column: ClassVar[str] = LABEL
    """Column whose labels ``trireme data`` counts."""
    media_columns: ClassVar[tuple[str, ...]] = ("image", "audio")
    """Columns of images and audio clips, which may be paths of files."""
    most_measured: ClassVar[int] = 10_000
    """Rows that ``trireme data`` measures of a larger set."""
    processor: Any = None
    """Object that turns raw data into inputs, such as a tokenizer; exports save it. None if there is none."""
    facts: Facts = Facts()
    """Properties of the data that the model is built for."""

    @abstractmethod
    def __init__(self, given: Given) -> None:
        """Load or train the processor, and learn the labels.

        Raises:
            UserError: the rows are not usable.
        """

    @abstractmethod
    def sample(self, row: dict[str, Any]) -> Sample:
        """One sample: arrays and numbers by name, the same at every call.

        Raises:
            ValueError: the row is not usable; the message says why, and the engine adds which row it is.
        """

    def made(self, rows: Dataset, name: str, key: str) -> MadeRows:
        """Rows of a set for ``sample``, after the work that is done once and kept, such as tokenizing.

        Args:
            name: of the set, such as ``train``.
            key: where their source stands in the recipe.

        Raises:
            UserError: the rows are not usable.
        """
        return MadeRows(rows)

    def media_files(self, rows: Dataset) -> MediaFiles:
        """The files that rows name in place of images and audio clips."""
        return MediaFiles(paths_in(rows, self.media_columns))

    def packed(self, rows: Any, seed: int, shuffle: bool) -> Binned | None:
        """Bins of the samples, where they are not packed as other tokens are (``packed_rows.Binned``).

        Args:
            rows: a data set of samples by index, with their ``lengths``.
        """
        return None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the processor; None if there is none."""
        return getattr(self.processor, "tokenizer", self.processor if hasattr(self.processor, "vocab_size") else None)

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        """A row as people read it."""
        return {name: _short(value) for name, value in row.items()}

    def views(self, sample: Collated) -> Mapping[str, Any]:
        """What ``trireme data`` shows of a collated sample, by name: views (``report/views.py``), texts, images of
        Pillow, arrays."""
        found = sample_views(sample, self.processor, self.tokenizer, self.facts)
        return {
            f"{self.made_of[name]} ({name})" if name in self.made_of else name: view for name, view in found.items()
        }

    def lengths(self, rows: Mapping[str, list[Any]]) -> Mapping[str, list[float]]:
        """Lengths of rows by what they count, before anything is cut, for ``trireme data``.

        Args:
            rows: values of some rows by column.
        """
        return {}

    def longest(self) -> Mapping[str, float | None]:
        """The greatest of these lengths that a sample holds, by name, beyond which it is cut; None cuts nothing."""
        return {}


def label_names(given: Given, column: str = "label") -> tuple[str, ...]:
    """Names of the labels in ``column``: those of ``data.labels``, else of the data set, else all that occur, sorted.

    Raises:
        UserError: a row to train on has a label that ``data.labels`` does not name.
    """
    from datasets import ClassLabel

    feature = given.rows.features[column]
    names = given.config.labels
    if isinstance(feature, ClassLabel):
        return tuple(names or feature.names)
    found = {str(value) for value in given.rows.unique(column) if value is not None}
    if names:
        unknown = sorted(found - set(names))
        if unknown:
            why = f"does not name {', '.join(unknown[:5])}, which the rows hold"
            raise UserError(Problem("data.labels", why, "name every label", names))
        return tuple(names)
    return tuple(sorted(found, key=lambda name: (not _is_whole(name), int(name) if _is_whole(name) else 0, name)))


def label_number(value: Any, names: tuple[str, ...], is_number: bool) -> int:
    """Place of a label among ``names``.

    Args:
        is_number: the data set stores the place itself.

    Raises:
        ValueError: it is not among them.
    """
    if value is None:
        raise ValueError("it has no label")
    if is_number:
        if not 0 <= int(value) < len(names):  # data sets write -1 where there is no label
            raise ValueError(f"its label {value} is none of the {len(names)} labels")
        return int(value)
    try:
        return names.index(str(value))
    except ValueError:
        raise ValueError(f"its label {value!r} is none of {', '.join(names[:10])}") from None


def texts_of(given: Given, *columns: str) -> Iterator[str]:
    """Texts in ``columns`` of the rows to train on; a column may hold lists of words."""
    for batch in given.rows.select_columns(list(columns)).iter(batch_size=256):
        for column in columns:
            for text in filter(None, batch[column]):  # type: ignore[index]
                yield from map(str, text if isinstance(text, list) else [text])


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _short(value: Any, most: int = 300) -> str:
    text = f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= most else text[: most - 3] + "..."
