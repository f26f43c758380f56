"""A data source that reads images from a folder, each with a caption in a text file of the same name.

For example, ``owl.txt`` holds the caption of ``owl.png``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .content_stamp import content_stamp, hash_json, time_stamp
from .file_text import refuse_encoding

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


@dataclass
class CaptionedFolder:
    """Source of rows with the columns ``image`` and ``text``: the first line of the text file is the caption."""

    path: str
    """The folder; its subfolders are searched too."""
    encoding: str = "utf-8"
    """Encoding of the text files, by its name in Python."""

    def __post_init__(self) -> None:
        refuse_encoding(self.encoding)

    def rows(self, cache_dir: str) -> Dataset:
        from datasets import Dataset, Features, Image, Value

        features = Features({"image": Image(decode=False), "text": Value("string")})
        found = Dataset.from_generator(self._rows, features=features, cache_dir=cache_dir)
        return found  # type: ignore[return-value]

    def column_names(self) -> list[str]:
        return ["image", "text"]

    def look(self) -> None:
        """Refuse a folder without captioned images."""
        self._pairs()

    def notes(self) -> list[str]:
        """Lines on images that are left out."""
        alone = len(self._images()) - len(self._pairs())
        empty = sum(not self._caption(text) for _, text in self._pairs())
        found = {"without a text file of their name": alone, "whose text file has an empty first line": empty}
        return [f"{count} image(s) {what} are left out: {self.path}" for what, count in found.items() if count]

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the folder."""
        return self._fingerprint(content_stamp)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for image, text in self._pairs():
            if caption := self._caption(text):
                yield {"image": {"bytes": image.read_bytes(), "path": None}, "text": caption}

    def _caption(self, text: Path) -> str:
        """The first line of a text file; empty if there is none."""
        try:
            lines = text.read_text(encoding=self.encoding).removeprefix("\ufeff").splitlines()
        except UnicodeDecodeError as error:
            why = f"is not {self.encoding}: {error.reason}"
            raise UserError(Problem(str(text), why, "set data.source.encoding, or convert the file")) from None
        except OSError as error:
            raise UserError(Problem(str(text), f"cannot be read: {error.strerror or error}", "mend the file")) from None
        return lines[0].strip() if lines else ""

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        folder = Path(os.path.expanduser(self.path))
        files = (file for pair in self._pairs() for file in pair)
        return hash_json([self.encoding, [(file.relative_to(folder).as_posix(), *stamp(file)) for file in files]])

    def _pairs(self) -> list[tuple[Path, Path]]:
        """(image, text file), sorted."""
        found = ((file, file.with_suffix(".txt")) for file in self._images())
        pairs = [(image, text) for image, text in found if text.is_file()]
        if not pairs:
            why = f"holds no image ({', '.join(IMAGE_SUFFIXES)}) with a text file of its name beside it"
            fix = "name a folder with pairs such as owl.png and owl.txt"
            raise UserError(Problem("data.source.path", why, fix, self.path))
        return pairs

    def _images(self) -> list[Path]:
        folder = Path(os.path.expanduser(self.path))
        if not folder.is_dir():
            raise UserError(Problem("data.source.path", "there is no such folder", "name one", self.path))
        return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES]
