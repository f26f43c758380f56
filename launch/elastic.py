"""Start a run's ranks (processes) on this machine through torch's elastic launcher, alone or together with other
machines, and wait for them. Also choose the number of ranks.

Rank 0 keeps the terminal; other ranks write into the run folder's ``logs/``. If one rank fails, all ranks are ended.
With ``--max-restarts`` they are started again and resume from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import Problem, UserError
from ..parallel.usable_cores import usable_cores
from ..trainer.interruption import STARTED, run_started
from .error_report import DIVERGED, SAVED, RanksFailed
from .failures import OWN_LAUNCH, left_a_file, raise_failure, write_message
from .forked import ForkServer
from .quick_imports import quick_imports

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing import LogsSpecs

    from ..parallel.plan import Plan
    from .agent import Agent

ENTRY = "trireme.launch.train"
MEETING = 600
"""Seconds that machines wait for each other at the start."""
LEAVING_TOGETHER = 60.0
"""Seconds that a machine waits for the others after its ranks have saved, since one machine serves the rendezvous."""


@dataclass(frozen=True)
class Machines:
    """Several machines that start ranks of one run. A launcher runs on each; they meet through a c10d rendezvous."""

    count: int
    index: int
    """Index of this machine; machine 0 serves the rendezvous."""
    endpoint: str
    """``HOST:PORT`` on the first machine."""
    address: str
    """Address at which other machines reach this one."""
    run_id: str
    """Name of this start, which keeps it apart from others at the same endpoint; also the name of its log folder."""


def launched() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores_per_rank(ranks: int) -> int:
    """Cores for each of ``ranks`` ranks, out of those that this process may use."""
    return max(len(usable_cores()) // ranks, 1)


def import_ahead(ranks: int | None, imports: Sequence[str] = ()) -> None:
    """Start the server that ranks are forked from, so that it imports while this process checks the recipe.

    Args:
        ranks: processes that the user asks for; with None or 1 there may be none to fork.
        imports: as in ``start_ranks``.
    """
    if ranks is not None and ranks > 1 and not launched():
        with environment(_variables(ranks, None)):
            ForkServer.start(imports)


def start_ranks(
    ranks: int,
    arguments: Sequence[str],
    run_dir: Path,
    entry: str = ENTRY,
    max_restarts: int = 0,
    machines: Machines | None = None,
    started: float | None = None,
    imports: Sequence[str] = (),
) -> None:
    """Run ``python -m trireme.launch.train`` with ``arguments`` in ``ranks`` processes and wait for them.

    Args:
        ranks: processes on this machine.
        run_dir: run folder; the ranks' output goes into its ``logs``.
        entry: module to run.
        max_restarts: how often all ranks are started again after a failure that another attempt may mend.
        machines: machines that start ranks of the same run; None if this is the only one.
        started: start of the run (seconds since the epoch); None takes the start of this process.
        imports: what this run's ranks import beside the usual, as ``module`` or ``module:function``.

    Raises:
        UserError: a rank refused what the user gave.
        LeftEarly: the ranks were told to leave, by a signal or the wall-clock limit, and have saved.
        Diverged: the run ended with a loss or weights that are not finite.
        RanksFailed: a rank failed in another way.
        KeyboardInterrupt: Ctrl-C was pressed; the signal was relayed and the ranks have ended.
        SystemExit: another signal ended the run; its code is 128 plus the signal's number.
    """
    variables = _variables(ranks, started)
    with environment(variables):
        ForkServer.start(imports)  # unless it imports already
    with quick_imports():
        from .rank_logs import RankLogs, newest_output

    logs = run_dir / "logs"
    with tempfile.TemporaryDirectory(prefix="trireme_errors_") as errors:
        specs = RankLogs(logs, Path(errors))
        agent = _agent(ranks, arguments, specs, lambda rank: newest_output(logs, rank), entry, max_restarts, machines)
        silence()
        try:
            result = _wait(agent, variables, machines)
        finally:
            specs.drop_empty()
    if result.is_failed():
        _report(result, agent, ranks, logs, machines)


def _variables(ranks: int, started: float | None) -> dict[str, str]:
    """Environment variables of the ranks."""
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(cores_per_rank(ranks)),
        STARTED: os.environ.get(STARTED) or str(started or run_started()),
        OWN_LAUNCH: str(os.getpid()),
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",  # torch handles this one; our agent handles the others
    }


def _wait(agent: Agent, variables: Mapping[str, str], machines: Machines | None) -> Any:
    """Start the ranks and wait for their end; returns torch's result. A signal ends this process too."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    try:
        with environment(variables), agent.relaying():
            result: Any = agent.run()
        if result.is_failed() and _ended_together(result) and machines:
            agent.leave_together(LEAVING_TOGETHER)
    except SignalException as error:
        _end_by(error.sigval)
    except RendezvousError as error:
        raise RanksFailed(f"the other machines are gone: {error}") from None
    finally:
        agent.get_worker_group().spec.rdzv_handler.shutdown()
    return result


def _report(result: Any, agent: Agent, ranks: int, logs: Path, machines: Machines | None) -> None:
    """Raise the error that says how the ranks ended, and leave it in the logs for the other machines."""
    if agent.received and not _ended_together(result) and not any(map(left_a_file, result.failures.values())):
        _end_by(agent.received)
    try:
        raise_failure(result.failures, ranks * (machines.count if machines else 1), agent.log_of)
    except (UserError, RanksFailed) as error:
        if machines:
            write_message(logs / machines.run_id, machines.index, result.failures, error)
        raise


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Context with environment ``variables`` set for child processes; afterwards their old values are restored."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _ended_together(result: Any) -> bool:
    """Whether the ranks ended by themselves with a code of their own (saved, diverged) and none failed."""
    return any(failure.exitcode in (SAVED, DIVERGED) for failure in result.failures.values())


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
    machines: Machines | None,
) -> Agent:
    from torch.distributed.elastic.agent.server import WorkerSpec
    from torch.distributed.launcher.api import LaunchConfig

    from .agent import Agent

    one = Machines(1, 0, "localhost:0", "localhost", time.strftime("%Y%m%d-%H%M%S"))
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks,
        rdzv_handler=_rendezvous(machines or one, MEETING if machines else 60),
        entrypoint=sys.executable,
        args=("-u", "-m", entry, *arguments),
        max_restarts=max_restarts,
        monitor_interval=0.1,
        local_addr=(machines or one).address,
        numa_options=LaunchConfig(1, 1, ranks, logs_specs=specs).numa_options,  # torch's default for this many GPUs
    )
    return Agent(spec, specs, log_of)


def _rendezvous(machines: Machines, timeout: int) -> Any:
    """The rendezvous of ``machines``. The first one opens it; the others try to reach it for ``timeout`` seconds."""
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    parameters = RendezvousParameters(
        "c10d",
        machines.endpoint,
        machines.run_id,
        min_nodes=machines.count,
        max_nodes=machines.count,
        local_addr=machines.address,
        is_host=machines.index == 0,
        read_timeout=timeout,
        join_timeout=MEETING,
    )
    try:
        return get_rendezvous_handler(parameters)
    except RendezvousError as error:
        first = machines.index == 0
        why = "cannot be opened: its port is in use" if first else f"cannot be reached within {MEETING} s"
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        problem = Problem("rendezvous", f"{why}{reason}", "choose another port or machine", machines.endpoint)
        raise UserError(problem) from None


def silence() -> None:
    """Switch off torch's own reports of failures, since trireme shows one readable message instead."""
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.startswith(
            ("torch.distributed.elastic", "torch.distributed.launcher")
        ):
            logger.setLevel(logging.CRITICAL)


def choose_world_size(plan: Plan, nproc: int | None) -> int:
    """Number of ranks: that of the launcher, else ``nproc``, else the number that the plan needs on these GPUs."""
    from ..parallel.plan import AXES

    if launched():
        return int(os.environ["WORLD_SIZE"])
    if nproc is not None:
        return max(nproc, 1)
    if not any(getattr(plan, axis) == "auto" for axis in AXES):
        return plan.default_world_size(1)
    import torch

    return plan.default_world_size(torch.cuda.device_count())
