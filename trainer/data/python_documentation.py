"""A data source that needs no download: the documentation of the Python language that ``help()`` shows, as texts."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ...errors import Problem, UserError
from .content_stamp import content_stamp, hash_json

MODULE = "pydoc_data.topics"


@dataclass
class PythonDocumentation:
    """Sections of the language reference, such as ``for`` and ``typesseq``: one document each."""

    def load(self, cache_dir: str) -> list[str]:
        return self.stream()

    def stream(self) -> list[str]:
        self._file()
        topics: dict[str, str] = importlib.import_module(MODULE).topics
        return [topics[name] for name in sorted(topics)]

    def fingerprint(self) -> str:
        return self.content()

    def content(self) -> str:
        return hash_json(content_stamp(self._file()))

    def look(self) -> list[str]:
        """All documents, which are few."""
        return self.stream()

    def _file(self) -> Path:
        found = importlib.util.find_spec(MODULE)
        if found is None or found.origin is None:
            why = f"this Python ships no {MODULE}"
            raise UserError(Problem("data.source", why, "install the whole standard library, or name another source"))
        return Path(found.origin)
