"""Read the rows of a recipe's data source, and rename its columns to the names that the task uses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .chat.media_forms import FOLDER
from .complete_rows import complete_rows
from .document_source import DocumentSource
from .file_formats import listed
from .mixed_source import SOURCES
from .usual_names import read_columns, with_usual_names

if TYPE_CHECKING:
    from datasets import Dataset


COLUMNS = "data.columns"
NO_STREAM = Problem(
    "data.streaming",
    "does not go with a task that learns from rows",
    "set data.streaming=false; rows are read from disk while training",
    True,
)


def columns_key(key: str) -> str:
    """Where a recipe names the columns of the source at ``key``."""
    return f"{key.removesuffix('source')}columns" if key.startswith(SOURCES) else COLUMNS


def unread_line(key: str, there: Sequence[str], present: Mapping[str, str]) -> str:
    """One line on columns of a source that a task does not read; empty if there are none.

    Args:
        present: names that the task uses -> columns that are read.
    """
    unread = [name for name in there if name not in present.values()]
    return f"{key}: columns that are not read: {listed(unread)}" if unread else ""


class RowSource(DocumentSource):
    """The source at ``key`` of the recipe, which gives rows of several columns."""

    left_out = ""
    """One line on the rows that ``rows_of`` has left out."""
    unread = ""
    """One line on the columns that ``rows_of`` has not read."""
    contract = "see docs/extending.md: a source of rows has rows(cache_dir) and fingerprint()"

    def needed(self, streaming: bool) -> dict[str, list[Any]]:
        """``rows``, unless the source gives documents, whose rows have a ``text``."""
        if hasattr(self.source, "load") and not hasattr(self.source, "rows"):
            return super().needed(streaming)
        return {"rows": [""], "fingerprint": []}

    def rows_of(self, cache_dir: str, wanted: Mapping[str, bool], columns: Mapping[str, str]) -> Dataset:
        """All rows that have what a task needs, with the columns that it wants.

        Args:
            wanted: name that the task uses for a column -> whether every row must have it.
            columns: that name -> name of the column in the source, where they differ.

        Raises:
            UserError: a column is missing, or no row has what the task needs.
        """
        from datasets import Dataset

        method = "rows" if hasattr(self.source, "rows") else "load"
        if self.gives_folders(wanted, columns):
            method = "rows_with_folders"
        with self._named(method):
            found = getattr(self.source, method)(cache_dir)
            data = found if isinstance(found, Dataset) else self._written(found, method, cache_dir)
        if problems := self.column_problems(data.column_names, wanted, columns):
            raise UserError(*problems)
        present = self.present(data.column_names, wanted, columns)
        self.unread = unread_line(self.key, data.column_names, present)
        data = data.select_columns(list(dict.fromkeys(present.values())))
        data = data.rename_columns({column: name for name, column in present.items() if column != name})
        data, self.left_out = complete_rows(data, [name for name, needed in wanted.items() if needed])
        if self.left_out and not len(data):
            fix = "name the columns that hold them: data.columns"
            raise UserError(
                Problem(self.key, f"has no row with all that the task needs: {self.left_out}", fix, self.name)
            )
        return data

    def gives_folders(self, wanted: Mapping[str, bool], columns: Mapping[str, str]) -> bool:
        """Whether rows get the column ``FOLDER`` with the folder of their file, in which relative paths begin."""
        return FOLDER in wanted and FOLDER not in columns and hasattr(self.source, "rows_with_folders")

    def column_names(self) -> list[str] | None:
        """Names of the source's columns if they show quickly."""
        if self._documents:
            return ["text"]
        return self._optional("column_names", None)

    def first_rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Pairs (place, row) of rows that can be read quickly; none where the source has no such method."""
        with self._named("first_rows"):
            yield from self._optional("first_rows", ())

    @property
    def _documents(self) -> bool:
        """Whether it is one of trireme's own sources of documents, which have no other column."""
        return type(self.source).__module__.startswith("trireme.") and not hasattr(self.source, "rows")

    def present(self, there: Sequence[str], wanted: Mapping[str, bool], columns: Mapping[str, str]) -> dict[str, str]:
        """Names that the task uses -> columns that are read, also under names that published data sets give them."""
        return read_columns(wanted, with_usual_names(wanted, columns, there), there)

    def column_problems(
        self, there: Sequence[str], wanted: Mapping[str, bool], columns: Mapping[str, str]
    ) -> list[Problem]:
        """Problems of named columns that the task does not know, or else of columns that the source does not have."""
        unknown = [self._no_such_role(name, wanted) for name in columns if name not in wanted]
        names = {name: columns.get(name, name) for name in wanted}
        # A column that the recipe names must be there, even if the task could do without.
        missing = [name for name, needed in wanted.items() if (needed or name in columns) and names[name] not in there]
        return unknown or [self._missing(name, names[name], list(there)) for name in missing]

    def _written(self, found: Any, method: str, cache_dir: str) -> Dataset:
        """A data set on disk of rows that a source of the user's own has given."""
        from datasets import Dataset
        from datasets.arrow_writer import ArrowWriter

        path = Path(tempfile.mkdtemp(dir=cache_dir)) / "rows.arrow"  # two sources may be written into one folder
        rows = self._checked(found, method)
        first = next(rows, None)
        if first is None:
            raise UserError(Problem(self.key, "gives no rows", "point it at data", self.name))
        with ArrowWriter(path=str(path)) as writer:
            for row in chain([first], rows):
                with self._storable(method):
                    writer.write(row)
            with self._storable(method):
                writer.finalize()
        return Dataset.from_file(str(path))

    @contextmanager
    def _storable(self, method: str) -> Iterator[None]:
        """Context that turns refusals of pyarrow into a problem of the source."""
        from pyarrow import ArrowException

        try:
            yield
        except (ArrowException, TypeError, ValueError) as error:
            why = f"gives a column by {method} whose values differ in type, or have one that no file holds"
            raise UserError(self._wrong(f"{why}: {' '.join(str(error).split())}")) from error

    def _checked(self, found: Any, method: str) -> Iterator[dict[str, Any]]:
        self._refuse_no_rows(found, method)
        assert isinstance(found, Iterable)
        columns: set[Any] | None = None
        for number, row in enumerate(found):
            if not isinstance(row, Mapping):
                raise UserError(self._wrong(f"gives {type(row).__name__} as row {number}, not a mapping of columns"))
            columns = columns or set(row)
            if set(row) != columns or not all(isinstance(name, str) for name in row):
                had, has = (", ".join(map(str, names)) for names in (sorted(map(str, columns)), row))
                raise UserError(self._wrong(f"gives row {number} with the columns {has}, but the first row has {had}"))
            yield dict(row)

    def _missing(self, name: str, column: str, there: list[str]) -> Problem:
        why = f"gives no column {column}, which the task needs as {name}; columns there: {', '.join(there) or 'none'}"
        fix = f"name it: {columns_key(self.key)}.{name}=COLUMN"
        if self._documents:
            fix = "choose data with rows (docs/data.md), or another task"
        return Problem(self.key, why, fix, self.name)

    def _no_such_role(self, name: str, wanted: Mapping[str, bool]) -> Problem:
        why = f"is not a column that the task uses; it uses {', '.join(wanted)}"
        return Problem(f"{COLUMNS}.{name}", why, "write it as NAME_IN_THE_TASK: COLUMN_OF_THE_SOURCE")
