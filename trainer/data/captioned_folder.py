"""Pictures of a folder with their captions, each in a text file of the picture's name (``owl.png``, ``owl.txt``)."""

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

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


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
        """Refuse a folder without captioned pictures."""
        self._pairs()

    def fingerprint(self) -> str:
        return self._print(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the folder."""
        return self._print(content_stamp)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for picture, text in self._pairs():
            try:
                lines = text.read_text(encoding=self.encoding).splitlines()
            except UnicodeDecodeError as error:
                why = f"is not {self.encoding}: {error.reason}"
                raise UserError(Problem(str(text), why, "set data.source.encoding, or convert the file")) from None
            if lines and lines[0].strip():
                yield {"image": {"bytes": picture.read_bytes(), "path": None}, "text": lines[0].strip()}

    def _print(self, stamp: Callable[[Path], Any]) -> str:
        folder = Path(os.path.expanduser(self.path))
        files = (file for pair in self._pairs() for file in pair)
        return hash_json([self.encoding, [(file.relative_to(folder).as_posix(), *stamp(file)) for file in files]])

    def _pairs(self) -> list[tuple[Path, Path]]:
        """(picture, text file), sorted."""
        folder = Path(os.path.expanduser(self.path))
        if not folder.is_dir():
            raise UserError(Problem("data.source.path", "there is no such folder", "name one", self.path))
        pictures = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in PICTURES)
        pairs = [(file, file.with_suffix(".txt")) for file in pictures if file.with_suffix(".txt").is_file()]
        if not pairs:
            why = f"holds no picture ({', '.join(PICTURES)}) with a text file of its name beside it"
            fix = "name a folder with pairs such as owl.png and owl.txt"
            raise UserError(Problem("data.source.path", why, fix, self.path))
        return pairs
