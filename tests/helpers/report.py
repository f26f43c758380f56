"""Functions for scripts that write tables of results: keep results in a file, show a progress bar, silence the runs,
and print tables or write them in Markdown.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

T = TypeVar("T")


def kept(file: Path, kind: type[T]) -> dict[str, T]:
    """Results by name that an earlier report has left in ``file``."""
    values = json.loads(file.read_text()) if file.exists() else {}
    return {name: kind(**value) for name, value in values.items()}


def keep(file: Path, results: Mapping[str, Any]) -> None:
    """Leave results, which are dataclasses, in ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({name: asdict(found) for name, found in results.items()}, indent=1))


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Any]:
    """Context with a bar on stderr; it gives a function, to be called with a description and the steps done."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=total)
        yield lambda description, done: progress.update(bar, description=description, completed=done)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Context without the runs' own log lines."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(titles: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Print a table."""
    table = Table(*titles, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
