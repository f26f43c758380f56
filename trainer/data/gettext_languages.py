"""A data set for language identification that needs no download: translated messages from gettext catalogues."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from .content_stamp import content_stamp, hash_json, time_stamp
from .gettext_rows import catalogue, catalogues, usual_roots


@dataclass
class GettextLanguages:
    """Rows of translated messages (``text``) and the code of their language (``label``).

    A message that stands unchanged in several languages, such as a name, belongs to none and is left out.
    """

    languages: list[str] = field(default_factory=lambda: ["de", "es", "fr", "it", "nl", "sv"])
    """Codes of the languages, such as fr or pt_BR; two at least."""
    roots: list[str] | None = None
    """Folders that are searched for ``LANGUAGE/LC_MESSAGES/*.mo``; null takes those of distributions and packages."""
    shortest: int = 20
    """Fewest characters of a text."""
    longest: int = 200
    """Most characters of a text."""
    most: int = 2000
    """Most texts of a language; if there are more, those with the smallest hashes are taken."""

    def __post_init__(self) -> None:
        self.roots = [self.roots] if isinstance(self.roots, str) else self.roots
        self.searched = usual_roots() if self.roots is None else self.roots
        if len(set(self.languages)) < 2:
            why, fix = "must be two or more, to be told apart", "name them: [de, fr]"
            raise UserError(Problem("data.source.languages", why, fix, self.languages))

    def rows(self, cache_dir: str) -> list[dict[str, Any]]:
        texts = {language: self._texts(language) for language in self.languages}
        languages = Counter(text for found in texts.values() for text in found)
        own = {language: [text for text in found if languages[text] == 1] for language, found in texts.items()}
        return [
            {"text": text, "label": language}
            for language, found in own.items()
            for text in sorted(found, key=_hash)[: self.most]
        ]

    def column_names(self) -> list[str]:
        return ["text", "label"]

    def look(self) -> None:
        """Refuse roots without a catalogue of one of the languages."""
        self._files()

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the catalogues."""
        return self._fingerprint(content_stamp)

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        stamps = {language: [stamp(file) for file in files] for language, files in self._files().items()}
        return hash_json([self.shortest, self.longest, self.most, stamps])

    def _texts(self, language: str) -> set[str]:
        pairs = (pair for file in catalogues(language, self.searched) for pair in catalogue(file))
        return {target for source, target in pairs if source != target and self.shortest <= len(target) <= self.longest}

    def _files(self) -> dict[str, list[Path]]:
        return {language: catalogues(language, self.searched) for language in self.languages}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
