"""Where log lines go. Rank 0 speaks; the others are heard from warnings on, each line with its rank. Everything that
any rank logs is kept in the run folder: ``log.txt`` of rank 0, ``logs/rankN.log`` of the others."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from ..parallel.mesh import Mesh
from .settings import RunConfig


def set_up_logging(run_dir: Path | None, mesh: Mesh, config: RunConfig) -> list[logging.Handler]:
    """Attach handlers to the ``trireme`` logger; give them to ``tear_down_logging`` at the end.

    Args:
        run_dir: where files go; None writes none.
    """
    logging.raiseExceptions = False  # a full disk must not end a run through its log file
    speaks = mesh.is_main or (config.log_on_each_node and os.environ.get("LOCAL_RANK") == "0")
    level = _number(config.log_level if speaks else config.log_level_replica)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(level)
    several = config.log_on_each_node or _number(config.log_level_replica) <= logging.INFO
    prefix = f"[rank {mesh.rank}] " if not mesh.is_main or (several and mesh.world_size > 1) else ""
    console.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    handlers: list[logging.Handler] = [console]
    if run_dir is not None:
        handlers += _file(run_dir / "log.txt" if mesh.is_main else run_dir / "logs" / f"rank{mesh.rank}.log")
    logger = logging.getLogger("trireme")
    logger.setLevel(min(level, logging.INFO))
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


def tear_down_logging(handlers: list[logging.Handler]) -> None:
    for handler in handlers:
        logging.getLogger("trireme").removeHandler(handler)
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
