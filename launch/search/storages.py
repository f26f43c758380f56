"""Open the storage of a study: a journal file in the study's folder, or a database given by its URL."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from ...errors import Problem, UserError
from .file_locks import lock_file

if TYPE_CHECKING:
    from optuna import Study

JOURNAL = "study.journal"
DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("mysqldb", "pymysql")}
"""Kind of database -> drivers of SQLAlchemy, of which the first that is installed is used."""
MODULES = {"mysqldb": "MySQLdb"}
"""Driver -> its module, if that has another name."""
PACKAGES = {"postgresql": "psycopg2-binary", "mysql": "pymysql"}
"""Kind of database -> package to install if it has no driver."""
CONNECT_SECONDS = 15
"""Seconds after which a database that does not answer is reported."""
FIX = "check the URL and that the database runs, or leave search.storage out for a journal in the study's folder"


class JournalLock:
    """Lock of a journal by the operating system: optuna's own locks stay behind when their process is killed.

    A process that is killed while it writes leaves half a line; the next one to write cuts it off.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._held: int | None = None

    def acquire(self) -> bool:
        self._held = lock_file(self.file.with_name(f"{self.file.name}.lock"), wait=True)
        _cut_half_a_line(self.file)
        return True

    def release(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def open_storage(folder: Path, url: str | None, create: Callable[[BaseStorage], Study]) -> Study:
    """The study that ``create`` makes or finds in the storage.

    Raises:
        UserError: the storage cannot be reached, or its driver is missing.
    """
    try:
        return create(_journal(folder) if url is None else _database(url))
    except (ModuleNotFoundError, ImportError) as error:
        kind = urlsplit(url or "").scheme.partition("+")[0]
        why = f"needs a package that is not installed ({error})"
        package = PACKAGES.get(kind) or error.name
        fix = (
            f"pip install {package}"
            if package
            else "install SQLAlchemy's driver of this database, or use sqlite:///FILE"
        )
        raise UserError(Problem("search.storage", why, fix, _without_password(url))) from None
    except UserError:
        raise
    except Exception as error:  # SQLAlchemy, its drivers and the file system have errors of their own
        why = f"cannot be used: {_reason(error)}"
        if url is None:
            fix = "restore the file, or start over with --fresh (the old folder is kept)"
            raise UserError(Problem(str(folder / JOURNAL), why, fix)) from None
        raise UserError(Problem("search.storage", why, FIX, _without_password(url))) from None


@contextmanager
def storage_errors(url: str | None) -> Iterator[None]:
    """Context in which a failure of the database, once it is open, is a problem of ``search.storage``.

    Raises:
        UserError: the database fails.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, StorageInternalError) or type(error).__module__.startswith("sqlalchemy.")):
            raise
        fix = "see that the database runs; then the same command goes on"
        why = f"has failed: {_reason(error)}"
        raise UserError(Problem("search.storage", why, fix, _without_password(url))) from error


def _journal(folder: Path) -> BaseStorage:
    file = folder / JOURNAL
    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalLock(file)))  # type: ignore[arg-type]


def _database(url: str) -> BaseStorage:
    kind = urlsplit(url).scheme.partition("+")[0]
    options: dict[str, Any] = {"timeout": 60} if kind == "sqlite" else {"connect_timeout": CONNECT_SECONDS}
    there = [name for name in DRIVERS.get(kind, ()) if importlib.util.find_spec(MODULES.get(name, name))]
    if there and "+" not in urlsplit(url).scheme:
        url = url.replace(f"{kind}://", f"{kind}+{there[0]}://", 1)
    return RDBStorage(url, engine_kwargs={"connect_args": options})


def _cut_half_a_line(file: Path) -> None:
    with file.open("r+b") as journal:
        size = journal.seek(0, os.SEEK_END)
        end = size
        while end:
            start = max(end - 65536, 0)
            journal.seek(start)
            found = journal.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            journal.truncate(end)


def _reason(error: BaseException) -> str:
    """The first line of the error that caused the others."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _without_password(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":***@") if parts.password else url
