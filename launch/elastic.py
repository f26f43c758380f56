"""Start ranks on this machine through torch's elastic launcher.

Rank 0 keeps the terminal; the others write into the run folder's ``logs/``. A rank that fails ends them all; with
``--max-restarts`` all are started again, and go on from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import UserError
from ..trainer.error_file import ERROR_FILE
from ..trainer.interruption import STARTED, run_started
from .failures import OWN_LAUNCH, left_a_file, raise_failure
from .report import SAVED

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import LogsSpecs

    from .agent import Agent

ENTRY = "trireme.launch.train"


def launched() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores_per_rank(ranks: int) -> int:
    """Share of the cores that this process may use."""
    return max(len(os.sched_getaffinity(0)) // ranks, 1)


def start_ranks(ranks: int, arguments: Sequence[str], run_dir: Path, entry: str = ENTRY, max_restarts: int = 0) -> None:
    """Run ``python -m trireme.launch.train`` with ``arguments`` in ``ranks`` processes and wait for them.

    Args:
        run_dir: gets the ranks' output in ``logs``.
        entry: module that is run instead.
        max_restarts: how often all ranks are started again after a failure that another attempt may mend.

    Raises:
        UserError: a rank refused what the user gave.
        LeftEarly: the ranks were told to leave, by a signal or the wall-clock limit, and have saved.
        RanksFailed: a rank failed otherwise.
        KeyboardInterrupt: Ctrl-C; the ranks were told and have ended.
        SystemExit: another signal ended the run; 128 plus its number.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    logs, errors = run_dir / "logs", tempfile.TemporaryDirectory(prefix="trireme_errors_")
    specs = _log_files(logs, Path(errors.name), ranks)
    agent = _agent(ranks, arguments, specs, lambda rank: _log_of(logs, rank), entry, max_restarts)
    silence()
    os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank(ranks)))
    os.environ.setdefault(STARTED, str(run_started()))
    os.environ[OWN_LAUNCH] = str(os.getpid())
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # by torch; the others by our agent
    try:
        with agent.relaying():
            result: Any = agent.run()
    except SignalException as error:
        _end_by(error.sigval)
    finally:
        for name in (OWN_LAUNCH, "TORCHELASTIC_SIGNALS_TO_HANDLE"):
            del os.environ[name]
        errors.cleanup()
        agent.get_worker_group().spec.rdzv_handler.shutdown()
    if result.is_failed():
        saved = any(failure.exitcode == SAVED for failure in result.failures.values())
        if agent.received and not saved and not any(map(left_a_file, result.failures.values())):
            _end_by(agent.received)
        raise_failure(result.failures, ranks, agent.log_of)


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


def _end_by(received: signal.Signals) -> NoReturn:
    if received == signal.SIGINT:
        raise KeyboardInterrupt from None
    raise SystemExit(128 + int(received)) from None


def _agent(
    ranks: int,
    arguments: Sequence[str],
    specs: LogsSpecs,
    log_of: Callable[[int], str],
    entry: str,
    max_restarts: int,
) -> Agent:
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
    from torch.distributed.launcher.api import LaunchConfig

    from .agent import Agent

    run_id = time.strftime("%Y%m%d-%H%M%S")
    rendezvous = RendezvousParameters("c10d", "localhost:0", run_id, min_nodes=1, max_nodes=1, local_addr="localhost")
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks,
        rdzv_handler=get_rendezvous_handler(rendezvous),
        entrypoint=sys.executable,
        args=("-u", "-m", entry, *arguments),
        max_restarts=max_restarts,
        monitor_interval=0.1,
        local_addr="localhost",
        numa_options=LaunchConfig(1, 1, ranks).numa_options,  # torch's own choice for as many GPUs
    )
    return Agent(spec, specs, log_of)


def silence() -> None:
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
