"""Where log lines go. Rank 0 speaks; the others are heard from warnings on, each line with its rank. Everything that
any rank logs is kept in the run folder: ``log.txt`` of rank 0, ``logs/rankN.log`` of the others.

Training lines, evaluations and samples are shown by callbacks (a bar, a box), so they go to the logger ``SHOWN``, whose
records reach the files and not the terminal. Libraries follow ``run.log_level`` too, and their warnings are kept.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh
    from .settings import RunConfig

SHOWN = "trireme.shown"
"""Logger of what the terminal shows in another form."""
LIBRARIES = ("transformers", "datasets", "DeepSpeed", "accelerate")
"""Loggers of the libraries that trireme runs on."""


class Terminal(logging.StreamHandler):
    """Writes to what standard error is at the time: a spinner or a bar puts a stream there that writes above it."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: Any) -> None:
        """The one that the base class is made with."""


def set_up_logging(run_dir: Path | None, mesh: Mesh, config: RunConfig) -> list[logging.Handler]:
    """Attach handlers to the ``trireme`` logger; give them to ``tear_down_logging`` at the end.

    Args:
        run_dir: where files go; None writes none.
    """
    logging.raiseExceptions = False  # a full disk must not end a run through its log file
    speaks = mesh.is_main or (config.log_on_each_node and os.environ.get("LOCAL_RANK") == "0")
    level = _number(config.log_level if speaks else config.log_level_replica)
    console = Terminal()
    console.setLevel(level)
    several = config.log_on_each_node or _number(config.log_level_replica) <= logging.INFO
    prefix = f"[rank {mesh.rank}] " if not mesh.is_main or (several and mesh.world_size > 1) else ""
    console.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    console.addFilter(lambda record: record.name != SHOWN)
    handlers: list[logging.Handler] = [console]
    if run_dir is not None:
        handlers += _file(run_dir / "log.txt" if mesh.is_main else run_dir / "logs" / f"rank{mesh.rank}.log")
    logger = logging.getLogger("trireme")
    logger.setLevel(min(level, logging.INFO))
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    _set_up_libraries(library_level(level), handlers[1:])
    return handlers


def library_level(level: int) -> int:
    """The level of the libraries' loggers: the same, but that their information, which is much, needs ``debug``."""
    return logging.WARNING if level == logging.INFO else level


def _set_up_libraries(level: int, files: list[logging.Handler]) -> None:
    import transformers

    # Each sets its own level when it is first used.
    transformers.utils.logging.set_verbosity(level)
    os.environ["DATASETS_VERBOSITY"] = logging.getLevelName(level).lower()
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(level)
        for handler in files:
            logging.getLogger(name).addHandler(handler)


def tear_down_logging(handlers: list[logging.Handler]) -> None:
    for handler in handlers:
        for name in ("trireme", *LIBRARIES):
            logging.getLogger(name).removeHandler(handler)
        handler.close()


def _file(path: Path) -> list[logging.Handler]:
    """None on a disk that is full: the run goes on, and says so when it saves."""
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
