"""Rows of a recipe's source, under the names that a task uses for their columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .document_source import DocumentSource

if TYPE_CHECKING:
    from datasets import Dataset


class RowSource(DocumentSource):
    """The source at ``key`` of the recipe, which gives rows of several columns."""

    def check(self, streaming: bool) -> None:
        if not callable(getattr(self.source, "rows", None)):
            super().check(streaming)

    def rows_of(self, cache_dir: str, wanted: Mapping[str, bool], columns: Mapping[str, str]) -> Dataset:
        """All rows, with the columns that a task wants.

        Args:
            wanted: name that the task uses for a column -> whether every row must have it.
            columns: that name -> name of the column in the source, where they differ.

        Raises:
            UserError: a column is missing.
        """
        from datasets import Dataset

        with self._named("load"):
            found = self.source.rows(cache_dir) if hasattr(self.source, "rows") else self.source.load(cache_dir)
            data = found if isinstance(found, Dataset) else _written(self._checked(found), cache_dir)
        unknown = [name for name in columns if name not in wanted]
        if unknown:
            raise UserError(*(self._no_such_role(name, wanted) for name in unknown))
        names = {name: columns.get(name, name) for name in wanted}
        missing = [name for name, needed in wanted.items() if needed and names[name] not in data.column_names]
        if missing:
            raise UserError(*(self._missing(name, names[name], data.column_names) for name in missing))
        present = {name: column for name, column in names.items() if column in data.column_names}
        data = data.select_columns(list(dict.fromkeys(present.values())))
        return data.rename_columns({column: name for name, column in present.items() if column != name})

    def _checked(self, found: Any) -> Iterator[dict[str, Any]]:
        self._refuse_no_rows(found, "load")
        assert isinstance(found, Iterable)
        for row in found:
            if not isinstance(row, Mapping):
                raise UserError(self._wrong(f"gives rows that are {type(row).__name__}, not mappings of columns"))
            yield dict(row)

    def _missing(self, name: str, column: str, there: list[str]) -> Problem:
        why = f"gives no column {column}, which the task needs as {name}; columns there: {', '.join(there) or 'none'}"
        return Problem(self.key, why, f"name it: data.columns.{name}=COLUMN", self.name)

    def _no_such_role(self, name: str, wanted: Mapping[str, bool]) -> Problem:
        why = f"is no column that the task uses; it uses {', '.join(wanted)}"
        return Problem(f"data.columns.{name}", why, "write it as NAME_IN_THE_TASK: COLUMN_OF_THE_SOURCE")


def _written(rows: Iterable[dict[str, Any]], cache_dir: str) -> Dataset:
    """A data set on disk of rows that a source of the user's own has given."""
    from datasets import Dataset

    folder = Path(cache_dir) / "rows"
    # Without a fingerprint the rows would be pickled to make one, and a generator cannot be.
    made = Dataset.from_generator(lambda: iter(rows), cache_dir=str(folder), fingerprint="rows")
    return made  # type: ignore[return-value]
