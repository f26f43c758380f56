"""The classes that describe how ``trireme data`` shows a sample: text with labels, image, audio, numbers.

A view holds the content to show. The terminal and the HTML page each draw it in their own way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np


class Role(Enum):
    """The part of a token in training."""

    READ = "read"
    """The model reads it; there are no labels beside it."""
    LEARNT = "learnt"
    """The loss counts it."""
    IGNORED = "ignored"
    """The model reads it, and the loss does not count it."""
    PADDING = "padding"


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens of one role, as text."""

    text: str
    role: Role
    hides: str | None = None
    """Text to predict here if it differs from ``text``: the word behind a mask, or the name of a label."""
    count: int = 1
    """Number of tokens."""


@dataclass(frozen=True)
class Tokens:
    """A row of tokens."""

    pieces: tuple[Piece, ...]

    @property
    def count(self) -> int:
        return sum(piece.count for piece in self.pieces)


@dataclass(frozen=True)
class Text:
    """A plain text, such as the name of a label."""

    text: str


@dataclass(frozen=True)
class ImageView:
    """An image: uint8 [height, width, 3] or [height, width]."""

    pixels: np.ndarray
    about: str = ""
    """Size and range of the numbers that the model gets."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or not _is_image(self.pixels.shape) or not self.pixels.size:
            found = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise ValueError(f"pixels are {found}; give uint8 [height, width, 3] or [height, width]")


@dataclass(frozen=True)
class AudioView:
    """An audio clip: float32 [samples], between -1 and 1."""

    samples: np.ndarray
    rate: int
    """Samples per second."""
    about: str = ""

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.rate < 1:
            raise ValueError(f"samples are {list(self.samples.shape)} at {self.rate} Hz; give [samples] and their rate")

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


@dataclass(frozen=True)
class Numbers:
    """Any other array: its shape, type, range and first values."""

    shape: tuple[int, ...]
    dtype: str
    first: tuple[Any, ...] = ()
    range: tuple[Any, Any] | None = None


View = Tokens | Text | ImageView | AudioView | Numbers


@dataclass(frozen=True)
class Collated:
    """One sample as its collator gives it to the model and to the task. Arrays are those of numpy, without the
    dimension of the samples; they may stand in dicts and lists."""

    inputs: dict[str, Any]
    targets: dict[str, Any]
    index: int
    """Index of the sample in its data set."""
    position: int | None = None
    """Position of the sample in the endless stream that a run consumes; None in an evaluation."""
    head: str = ""
    """Head of the task: the ``labels`` of ``causal_lm`` stand at the positions that predict them."""


FIRST = 8
"""Values of an array that are shown."""


def numbers(array: Any) -> Numbers:
    """A view of any array."""
    found = np.asarray(array)
    flat = found.reshape(-1)
    first = tuple(value.item() for value in flat[:FIRST])
    counted = found.dtype.kind in "iufb" and len(flat)
    return Numbers(found.shape, str(found.dtype), first, (flat.min().item(), flat.max().item()) if counted else None)


def as_view(value: Any) -> View:
    """The view of what a user's own ``Samples.views`` gives: a view, a text, a Pillow image, or an array."""
    if isinstance(value, View):
        return value
    if isinstance(value, str):
        return Text(value)
    if hasattr(value, "convert") and hasattr(value, "getbands"):  # a Pillow image, which need not be installed
        return ImageView(np.asarray(value.convert("RGB")))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.size and _is_image(value.shape):
        return ImageView(value)
    if isinstance(value, np.ndarray) or hasattr(value, "__array__"):
        return numbers(value)
    return Text(str(value))


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
