"""A translation data set that needs no download: programs' messages and their translations, from gettext catalogues.

Linux distributions keep catalogues under /usr/share/locale, and many Python packages contain some. So a machine has
about ten thousand sentence pairs of a common language. A catalogue (``.mo``) is a table of strings:
https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html
"""

from __future__ import annotations

import os
import struct
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from .content_stamp import content_stamp, hash_json, time_stamp

MAGIC = 0x950412DE


def usual_roots() -> list[str]:
    """Folders in which distributions and Python packages keep catalogues."""
    return ["/usr/share/locale", "/usr/share/locale-langpack", sysconfig.get_path("purelib")]


@dataclass
class GettextCatalogues:
    """Rows of messages (``source``, in English) and their translations (``target``)."""

    language: str
    """Code of the language of the translations, such as fr or pt_BR."""
    roots: list[str] | None = None
    """Folders that are searched for ``LANGUAGE/LC_MESSAGES/*.mo``; null takes ``usual_roots``."""
    shortest: int = 2
    """Fewest characters of a text."""
    longest: int = 200
    """Most characters of a text."""

    def __post_init__(self) -> None:
        self.roots = [self.roots] if isinstance(self.roots, str) else self.roots
        self.searched = usual_roots() if self.roots is None else self.roots

    def rows(self, cache_dir: str) -> list[dict[str, Any]]:
        pairs = dict.fromkeys(pair for file in self._files() for pair in catalogue(file) if self._fits(pair))
        return [{"source": source, "target": target} for source, target in pairs]

    def column_names(self) -> list[str]:
        return ["source", "target"]

    def look(self) -> None:
        """Refuse roots without a catalogue of the language."""
        self._files()

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the catalogues."""
        return self._fingerprint(content_stamp)

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        return hash_json([self.language, self.shortest, self.longest, [stamp(file) for file in self._files()]])

    def _fits(self, pair: tuple[str, str]) -> bool:
        source, target = pair
        return source != target and all(self.shortest <= len(text) <= self.longest for text in pair)

    def _files(self) -> list[Path]:
        return catalogues(self.language, self.searched)


def catalogues(language: str, roots: Sequence[str]) -> list[Path]:
    """The catalogues of a language below ``roots``, sorted.

    Raises:
        UserError: there is none.
    """
    folders = [Path(os.path.expanduser(root)) for root in roots]
    pattern = f"**/{language}/LC_MESSAGES/*.mo"
    found = sorted({file.resolve() for folder in folders if folder.is_dir() for file in folder.glob(pattern)})
    if not found:
        why = f"hold no catalogue of the language {language} (LANGUAGE/LC_MESSAGES/*.mo)"
        fix = "name folders that do, or install a package of translations, such as Debian's locales or gettext"
        raise UserError(Problem("data.source.roots", why, fix, roots))
    return found


def catalogue(path: Path) -> Iterator[tuple[str, str]]:
    """Messages and translations of one file; a message with a plural form gives its singular.

    Raises:
        UserError: the file is no catalogue.
    """
    content = path.read_bytes()
    try:
        order = "<" if struct.unpack_from("<I", content)[0] == MAGIC else ">"
        magic, _, count, sources, targets = struct.unpack_from(f"{order}5I", content)
        if magic != MAGIC:
            raise ValueError("it does not begin as one")
        strings = [list(_strings(content, order, count, table)) for table in (sources, targets)]
    except (struct.error, ValueError) as error:
        why = f"is not a gettext catalogue: {error}"
        raise UserError(Problem("data.source.roots", why, "leave this file out", str(path))) from None
    for source, target in zip(*strings, strict=True):
        source = source.rpartition(b"\x04")[2]  # a context may stand before a message
        pair = [text.partition(b"\0")[0].decode("utf-8", "replace").strip() for text in (source, target)]
        if all(pair) and "\ufffd" not in pair[1]:  # the first entry has no message, and an old file another encoding
            yield pair[0], pair[1]


def _strings(content: bytes, order: str, count: int, table: int) -> Iterator[bytes]:
    for length, start in struct.iter_unpack(f"{order}2I", content[table : table + 8 * count]):
        if start + length > len(content):
            raise ValueError("a text lies beyond its end")
        yield content[start : start + length]
