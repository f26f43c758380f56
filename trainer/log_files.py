"""Set up logging to the terminal and, for a run, to files in the run folder.

On the terminal, rank 0 logs from ``run.log_level`` on; other ranks log warnings, each line with its rank. All records
are kept in the run folder: in ``log.txt`` for rank 0, in ``logs/rankN.log`` for the others. Callbacks display metrics
and samples in their own form (a bar, a box), so these go to the logger ``SHOWN``, whose records reach only the files.
Libraries follow ``run.log_level`` too; their warnings and Python's are kept. With ``run.log_format=json`` the terminal
gets every record as a line of JSON instead.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .json_log import JsonLines
from .spinner import allow_drawing, drawing_is_allowed

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh
    from .settings import RunConfig

SHOWN = "trireme.shown"
"""Logger of lines that the terminal shows in another form."""
LIBRARIES = ("transformers", "datasets", "DeepSpeed", "accelerate")
"""Loggers of the libraries that trireme runs on."""
WARNINGS = "py.warnings"
"""Logger that gets what Python's ``warnings`` show."""


class Terminal(logging.StreamHandler):
    """Handler that writes to the current ``sys.stderr``, which a spinner or bar replaces by a stream above itself."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        """Ignore the stream that the base class sets."""


def set_up_logging(run_dir: Path | None, mesh: Mesh, config: RunConfig) -> list[logging.Handler]:
    """Attach handlers to the ``trireme`` logger; give them to ``tear_down_logging`` at the end.

    Args:
        run_dir: folder for log files; None writes none.
    """
    logging.raiseExceptions = False  # a full disk must not end a run through its log file
    speaks = mesh.is_main or (config.log_on_each_node and os.environ.get("LOCAL_RANK") == "0")
    level = _number(config.log_level if speaks else config.log_level_replica)
    several = config.log_on_each_node or _number(config.log_level_replica) <= logging.INFO
    prefix = f"[rank {mesh.rank}] " if not mesh.is_main or (several and mesh.world_size > 1) else ""
    as_json = JsonLines(mesh.rank) if config.log_format == "json" else None
    handlers = [_terminal(level, prefix, as_json)]
    if run_dir is not None:
        handlers += _file(run_dir / "log.txt" if mesh.is_main else run_dir / "logs" / f"rank{mesh.rank}.log")
    logging.captureWarnings(True)
    for handler in handlers:
        logging.getLogger(WARNINGS).addHandler(handler)
    logging.getLogger(WARNINGS).setLevel(library_level(level))
    allow_drawing(config.progress and as_json is None)
    return _attached(handlers, level)


def log_alone(config: RunConfig) -> list[logging.Handler]:
    """Attach a handler for a process that is no rank, has no run folder, and prints what it has found: warnings go to
    the terminal, and more only if ``run.log_level`` asks for more than ``info``."""
    level = library_level(_number(config.log_level))
    return _attached([_terminal(level, "")], level)


def _terminal(level: int, prefix: str, as_json: logging.Formatter | None = None) -> logging.Handler:
    """The handler of the terminal. ``as_json`` formats all records, also those that people see in another form."""
    console = Terminal()
    console.setLevel(level)
    console.setFormatter(as_json or logging.Formatter(f"{prefix}%(message)s"))
    if as_json is None:
        console.addFilter(lambda record: record.name != SHOWN)
    return console


def _attached(handlers: list[logging.Handler], level: int) -> list[logging.Handler]:
    """Attach the handler of the terminal, and then those of files, to the loggers."""
    logger = logging.getLogger("trireme")
    logger.setLevel(min(level, logging.INFO))
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    _set_up_libraries(library_level(level), handlers[1:])
    return handlers


def library_level(level: int) -> int:
    """The level of the libraries' loggers: the same, except that ``info`` becomes ``warning``, since they log a lot."""
    return logging.WARNING if level == logging.INFO else level


def _set_up_libraries(level: int, files: list[logging.Handler]) -> None:
    import transformers

    # transformers and datasets set their own level when they are first used.
    transformers.utils.logging.set_verbosity(level)
    if not drawing_is_allowed():
        transformers.utils.logging.disable_progress_bar()  # those of the hub too
    os.environ["DATASETS_VERBOSITY"] = logging.getLevelName(level).lower()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(level)
        for handler in files:
            logging.getLogger(name).addHandler(handler)


def tear_down_logging(handlers: list[logging.Handler]) -> None:
    logging.captureWarnings(False)
    if not drawing_is_allowed():
        import transformers

        transformers.utils.logging.enable_progress_bar()
    allow_drawing(True)
    for handler in handlers:
        for name in ("trireme", WARNINGS, *LIBRARIES):
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def _file(path: Path) -> list[logging.Handler]:
    """A handler that writes to ``path``; none if the file cannot be opened, since a full disk must not end a run."""
    try:
        path.parent.mkdir(exist_ok=True)
        handler = logging.FileHandler(path)
    except OSError as error:
        logging.getLogger("trireme.logs").warning("%s is not written: %s", path, error.strerror or error)
        return []
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return [handler]


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
