"""Wrap the object that gives a recipe its documents (``data.source``), and check its methods and return values.

A fault becomes one error message that names the recipe's key. The same source class may stand at ``data.source`` or at
``data.eval_source``, so the message is given the key that the recipe uses.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from ..target_kind import not_made_for
from .arrow_texts import write_texts
from .document_files import half_character, kind_of, not_string

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger("trireme.data")
SOURCE, EVAL_SOURCE = "data.source", "data.eval_source"
CONTRACT = "see docs/extending.md: a source has load(cache_dir), stream() and fingerprint()"
OPTIONAL = {"look": [], "content": [], "notes": [], "column_names": [], "first_rows": []}
"""Optional methods of a source -> their arguments."""


class DocumentSource:
    """The source at ``key`` of the recipe, with checked arguments and return values."""

    contract = CONTRACT

    def __init__(self, component: Component, key: str = SOURCE) -> None:
        """
        Raises:
            UserError: the source cannot be constructed from its arguments.
        """
        self.key, self.name = key, component["_target_"]
        self._arguments = {name: value for name, value in component.items() if name != "_target_"}
        self.source = locate(self.name)
        if found := not_made_for(self.source, "source", ["fingerprint"], "Source"):
            raise UserError(Problem(f"{key}._target_", *found, self.name))
        with self._named(CONSTRUCTOR):
            self.source = instantiate(component)

    def check(self, streaming: bool) -> None:
        """Refuse an object that lacks the methods of a source."""
        problems = []
        needed = self.needed(streaming)
        rows_only = not callable(getattr(self.source, "load", None)) and callable(getattr(self.source, "rows", None))
        if rows_only and "rows" not in needed:
            why = "gives rows of columns, and this task learns from documents"
            fix = "name a source of documents (trireme.trainer.data.sources.Files), or a task that learns from rows"
            raise UserError(Problem(self.key, why, fix, self.name))
        for name, arguments in needed.items():
            method = getattr(self.source, name, None)
            if not callable(method):
                problems.append(self._wrong(f"has no method {name}"))
            elif not _takes(method, arguments):
                given = f"{name}({'cache_dir' if arguments else ''})"
                has = f"has a {name}{inspect.signature(method)} that cannot be called as {given}"
                problems.append(self._wrong(has))
        if problems:
            raise UserError(*problems)

    def needed(self, streaming: bool) -> dict[str, list[Any]]:
        """Methods that the source must have -> arguments that they are called with."""
        return {"stream" if streaming else "load": [] if streaming else [""], "fingerprint": []}

    def look(self) -> list[str] | None:
        """Refuse problems that show quickly; returns the documents if the source could read all of them quickly."""
        return self._optional("look", None)

    def notes(self) -> list[str]:
        """Lines for the log on the documents that were found."""
        return list(self._optional("notes", []))

    def fingerprint(self) -> str:
        """A string that names the documents in the cache.

        The class and arguments of a user's own source are part of it, so that two sources whose fingerprint is the same
        constant do not share documents.
        """
        with self._named("fingerprint"):
            found = self.source.fingerprint()
        if not isinstance(found, str):
            raise UserError(self._wrong(f"gives a fingerprint that is {kind_of(found)}, not a string"))
        if self.name.startswith("trireme."):
            return found
        return f"{self.name} {json.dumps(self._arguments, sort_keys=True, default=str)} {found}"

    def content(self) -> str:
        """Like ``fingerprint``, but equal for a copy of the documents elsewhere, if the source supports it."""
        return self._optional("content", None) or self.fingerprint()

    @property
    def skipped(self) -> int:
        """Number of files of the last load that could not be decoded."""
        return getattr(self.source, "skipped", 0)

    @property
    def without_text(self) -> list[str]:
        """Files of the last load that gave no document."""
        return list(getattr(self.source, "without_text", []))

    def load(self, cache_dir: str) -> Dataset:
        """All documents as a data set with a column ``text``; the source may also return a list of texts or rows."""
        from datasets import Dataset

        with self._named("load"):
            found = self.source.load(cache_dir)
            if isinstance(found, Dataset):
                self._check_columns(found, "load")
                return found.select_columns(["text"])
            return write_texts(self._texts(found, "load"), cache_dir)

    def stream(self) -> IterableDataset:
        """The same documents, read on demand; the source may also return a list or generator of them."""
        from datasets import Dataset, Features, IterableDataset, Value

        with self._named("stream"):
            found = self.source.stream()
            if isinstance(found, Dataset):
                found = found.to_iterable_dataset()
            if isinstance(found, IterableDataset):
                self._check_columns(found, "stream")
                return found
            self._refuse_no_rows(found, "stream")
            return IterableDataset.from_generator(
                partial(_rows, self), features=Features({"text": Value("large_string")})
            )

    def text(self, row: Any, method: str = "stream") -> str:
        """The text of a row, which is a string or has a column ``text``."""
        value = row.get("text", _ABSENT) if isinstance(row, Mapping) else row
        if value is _ABSENT:
            names = ", ".join(map(str, row))
            raise UserError(self._wrong(f"gives rows without text by {method}; columns there: {names}"))
        if value is not None and not isinstance(value, str):
            raise UserError(self._wrong(f"gives {kind_of(value)} by {method}, not text"))
        if value and not self.name.startswith("trireme.") and (half := half_character(value)):
            raise UserError(self._wrong(f"gives a text by {method} that {half}: {value[:60]!r}"))
        return value or ""

    def rows(self, rows: Iterator[Any]) -> Iterator[str]:
        """Texts of a stream's rows; errors while they are read also name the source."""
        with self._named("stream"):
            for row in rows:
                yield self.text(row)

    def _check_columns(self, data: Dataset | IterableDataset, method: str) -> None:
        """Check the columns, if they are known; a stream may only know them at its first row, which ``text`` checks."""
        if data.features is None:
            return
        if "text" not in data.features:
            names = ", ".join(data.features) or "none"
            raise UserError(self._wrong(f"gives no column text by {method}; columns there: {names}"))
        if kind := not_string(data.features.arrow_schema.field("text").type):
            raise UserError(self._wrong(f"gives a column text of {kind} by {method}, not of strings"))

    def _texts(self, found: Any, method: str) -> Iterator[str]:
        self._refuse_no_rows(found, method)
        return (self.text(row, method) for row in found)

    def _refuse_no_rows(self, found: Any, method: str) -> None:
        kind = type(found).__name__
        if isinstance(found, (str, bytes, Mapping)) or not isinstance(found, Iterable):
            raise UserError(self._wrong(f"gives {kind} by {method}, not a data set or list of rows with a text"))

    def _optional(self, name: str, default: Any) -> Any:
        method = getattr(self.source, name, None)
        if not callable(method) or not _takes(method, OPTIONAL[name]):
            return default
        with self._named(name):
            return method()

    def _wrong(self, why: str) -> Problem:
        return Problem(self.key, why, self.contract, self.name)

    @contextmanager
    def _named(self, doing: str) -> Iterator[None]:
        """Context in which problems, and other errors of a user's own class, name the recipe's key."""
        try:
            with component_errors(self.key, self.source, doing):
                yield
        except UserError as error:
            if self.key == SOURCE:
                raise
            raise UserError(*(_renamed(problem, self.key) for problem in error.problems)) from error


_ABSENT = object()


def sources(
    source: Component | None, eval_source: Component | None, streaming: bool, key: str = SOURCE
) -> list[DocumentSource]:
    """The train source and, if there is one, the evaluation source.

    Args:
        key: where the train source stands in the recipe.

    Raises:
        UserError: a source does not keep its contract; the error lists the problems of both.
    """
    opened, problems = [], []
    for where, component in ((key, source), (EVAL_SOURCE, eval_source)):
        if component is None:
            continue
        try:
            opened.append(DocumentSource(component, where))
            opened[-1].check(streaming)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return opened


def _rows(source: DocumentSource) -> Iterator[dict[str, str]]:
    for row in source.source.stream():
        yield {"text": source.text(row)}


def _takes(method: Any, arguments: list[Any]) -> bool:
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a C function without a signature
        return True
    return True


def _renamed(problem: Any, key: str) -> Any:
    if isinstance(problem, str):
        return problem.replace(SOURCE, key)
    parts = {name: getattr(problem, name).replace(SOURCE, key) for name in ("field", "why", "fix")}
    return replace(problem, **parts)
