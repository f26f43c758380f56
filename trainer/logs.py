"""Where log lines go: console and ``log.txt`` on rank 0; warnings only on the others, whose output is in ``logs/``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def set_up_logging(run_dir: Path | None, main: bool) -> list[logging.Handler]:
    """Attach handlers to the ``trireme`` logger; give them to ``tear_down_logging`` at the end.

    Args:
        run_dir: where ``log.txt`` goes; None writes no file.
    """
    logging.raiseExceptions = False  # a full disk must not end a run through its log file
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if main:
        handlers[0].setFormatter(logging.Formatter("%(message)s"))
    if main and run_dir is not None:
        handlers.append(logging.FileHandler(run_dir / "log.txt"))
        handlers[1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("trireme")
    logger.setLevel(logging.INFO if main else logging.WARNING)
    logger.propagate = False
    for handler in handlers:
        logger.addHandler(handler)
    return handlers


def tear_down_logging(handlers: list[logging.Handler]) -> None:
    for handler in handlers:
        logging.getLogger("trireme").removeHandler(handler)
        handler.close()
