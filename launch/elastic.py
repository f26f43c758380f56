"""Start ranks on this machine through torch's elastic launcher.

Rank 0 keeps the terminal; the others write into the run folder's ``logs/``. A rank that fails ends them all.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import UserError
from .failures import ERROR_FILE, OWN_LAUNCH, raise_failure

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import LogsSpecs

ENTRY = "trireme.launch.train"


def launched() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores_per_rank(ranks: int) -> int:
    """Share of the cores that this process may use."""
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def start_ranks(ranks: int, arguments: Sequence[str], run_dir: Path, entry: str = ENTRY) -> None:
    """Run ``python -m trireme.launch.train`` with ``arguments`` in ``ranks`` processes and wait for them.

    Args:
        run_dir: gets the ranks' output in ``logs``.
        entry: module that is run instead.

    Raises:
        UserError: a rank refused what the user gave.
        RanksFailed: a rank failed otherwise.
        KeyboardInterrupt: Ctrl-C; the ranks were told and have ended.
        SystemExit: another signal ended the run; 128 plus its number.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = run_dir / "logs"
    errors = tempfile.TemporaryDirectory(prefix="trireme_errors_")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        max_restarts=0,
        monitor_interval=0.1,
        run_id=time.strftime("%Y%m%d-%H%M%S"),
        logs_specs=_log_files(logs, Path(errors.name), ranks),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
    )
    _silence()
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank(ranks)))
    os.environ[OWN_LAUNCH] = str(os.getpid())
    try:
        elastic_launch(config, sys.executable)("-u", "-m", entry, *arguments)
    except ChildFailedError as error:
        raise_failure(error.failures, ranks, lambda rank: _log_of(logs, rank))
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + int(error.sigval)) from None
    finally:
        del os.environ[OWN_LAUNCH]
        errors.cleanup()


def _log_files(logs: Path, errors: Path, ranks: int) -> LogsSpecs:
    """Output of ranks but the first goes to ``logs``; what a rank says of its failure to ``errors``, since the disk of
    the run may be what has failed: torch falls over a file that could only be begun.

    Raises:
        UserError: ``logs`` cannot be written; also when torch asks for a new attempt's files.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, LogsDest, Std

    from ..trainer.run_folder import unwritable

    class Logs(DefaultLogsSpecs):
        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            try:
                files = super().reify(envs)
            except OSError as error:
                raise UserError(unwritable(logs.parent, error)) from None
            attempt = tempfile.mkdtemp(dir=errors)
            for rank, env in envs.items():
                files.error_files[rank] = env[ERROR_FILE] = f"{attempt}/{rank}.json"
            return files

    try:
        return Logs(str(logs), redirects={rank: Std.ALL for rank in range(1, ranks)})
    except OSError as error:
        raise UserError(unwritable(logs.parent, error)) from None


def _silence() -> None:
    """torch announces every failure in its own words; ours are shown instead."""
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.startswith(
            ("torch.distributed.elastic", "torch.distributed.launcher")
        ):
            logger.setLevel(logging.CRITICAL)


def _log_of(logs: Path, rank: int) -> str:
    """Newest log file of a rank; empty for rank 0."""
    files = sorted(logs.glob(f"*/attempt_*/{rank}/stderr.log"), key=lambda path: path.stat().st_mtime)
    return str(files[-1]) if files and rank > 0 else ""
