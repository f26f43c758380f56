"""Small data sources for tests of many architectures: digits with captions, segmentation maps or boxes, spoken digits,
and labelled or translated texts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers.recipes import FEW_FILES
from trireme.trainer.data.digits import Digits
from trireme.trainer.data.espeak import DIGITS as WORDS

COUNT = 60
"""Number of rows in each source."""
SIDE = 32
"""Height and width of an image in which a digit is placed."""

MONTHS = {
    **{"January": "janvier", "February": "février", "March": "mars", "April": "avril", "May": "mai", "June": "juin"},
    **{"July": "juillet", "August": "août", "September": "septembre", "October": "octobre"},
    **{"November": "novembre", "December": "décembre"},
}


class _Rows:
    """A source that always gives the same rows."""

    def rows(self, cache_dir: str) -> list[dict[str, Any]]:
        return list(self._made(cache_dir))

    def fingerprint(self) -> str:
        return f"{type(self).__name__}-1"

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        raise NotImplementedError


class CaptionedDigits(_Rows):
    """Handwritten digits (``image``) with captions (``text``)."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(_digits(cache_dir)):
            yield {"image": row["image"], "text": f"number {number}: a handwritten {WORDS[row['label']]}"}


class LabelledLines(_Rows):
    """Lines of Python's standard library (``text``) and the package that they are in (``label``)."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        for folder in FEW_FILES:
            files = sorted(Path(folder).glob("*.py"))
            lines = [line.strip() for file in files for line in file.read_text().splitlines() if len(line) > 40]
            for line in list(dict.fromkeys(lines))[: COUNT // len(FEW_FILES)]:
                yield {"text": line, "label": Path(folder).name}


class TranslatedMonths(_Rows):
    """English words (``source``) and French ones (``target``), with the numbers that belong to them."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        for day in range(1, 6):
            for one, other in MONTHS.items():
                yield {"source": f"on {one} {day}", "target": f"le {day} {other}"}


class SpokenDigits(_Rows):
    """Digits spoken by espeak-ng (``audio``), with their text and label."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        from trireme.trainer.data.espeak import SynthesisedSpeech

        yield from SynthesisedSpeech(most_words=1, count=COUNT).rows(cache_dir)


class MappedDigits(_Rows):
    """Digits on black (``image``), and a ``map`` of the same size: the digit's label and one, or zero on black."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        import numpy as np
        from PIL import Image

        for image, label, _ in _placed(cache_dir):
            marked = np.where(np.asarray(image) > 60, label + 1, 0).astype(np.uint8)
            yield {"image": _png(image), "map": _png(Image.fromarray(marked))}


class BoxedDigits(_Rows):
    """Digits on black (``image``), and where each is: ``boxes`` of (left, top, width, height), and their ``labels``."""

    def _made(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        for image, label, box in _placed(cache_dir):
            yield {"image": _png(image), "boxes": [box], "labels": [WORDS[label]]}


def _digits(cache_dir: str) -> list[dict[str, Any]]:
    return list(Digits().rows(cache_dir).select(range(COUNT)))  # type: ignore[arg-type]


def _placed(cache_dir: str) -> Iterator[tuple[Any, int, list[float]]]:
    """(image, digit, box) of digits of 16 x 16 pixels at changing places."""
    from PIL import Image

    for number, row in enumerate(_digits(cache_dir)):
        digit = Image.open(io.BytesIO(row["image"]["bytes"])).resize((16, 16))
        left, top = number * 5 % 16, number * 3 % 16
        image = Image.new("L", (SIDE, SIDE))
        image.paste(digit, (left, top))
        yield image, row["label"], [float(left), float(top), 16.0, 16.0]


def _png(image: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "png")
    return {"bytes": file.getvalue(), "path": None}
