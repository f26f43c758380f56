"""Train on ranks that are forked from a notebook or script, so that the ranks can use classes that it defines.

A notebook's stop button sends SIGINT, to the notebook's process only or to the ranks as well. Either way the ranks save
at the end of a step and exit; a second SIGINT ends them at once.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..trainer.interruption import RELAYED_AS, SAME_KEYSTROKE
from .elastic import cores_per_rank, environment, silence
from .error_report import Diverged, LeftEarly, RanksFailed
from .failures import ERROR_FILE, OWN_LAUNCH, raise_failure, run_rank
from .rank_exits import RankExits

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import LaunchConfig

    from ..configs.schema import RecipeConfig

TORCHS_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that torch's launcher handles; it would leave its handlers behind in the notebook."""


def fork_ranks(recipe: RecipeConfig, resume: str, ranks: int) -> LeftEarly | Diverged | None:
    """Train on forked ranks, to the end or until they have left early and saved; returns how they left, None at the
    end.

    Raises:
        UserError: something the user can mend.
        RanksFailed: a rank failed; the error is that of the first failure.
        KeyboardInterrupt: SIGINT came twice, or before there was anything to save.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import elastic_launch

    refuse_used_gpu(ranks)
    silence()
    # torch sets the last variable itself; listing it here restores the notebook's own value afterwards.
    told = {OWN_LAUNCH: str(os.getpid()), "PYTORCH_NVML_BASED_CUDA_CHECK": "1", "TORCHELASTIC_SIGNALS_TO_HANDLE": ""}
    failures: dict[int, ProcessFailure] = {}
    with (
        tempfile.TemporaryDirectory(prefix="trireme_notebook_") as folder,
        environment(told),
        _interruptible(folder) as interrupts,
        RankExits(folder) as exits,
    ):
        try:
            elastic_launch(_configuration(ranks, folder), _rank)(recipe, resume, folder)
        except ChildFailedError as error:
            failures = _failures(error, folder, ranks, exits.signals)
    if not failures:
        return None
    run_dir = Path(recipe.run.dir)
    try:
        raise_failure(failures, ranks, lambda rank: str(_log_of(run_dir, rank)) if rank else "")
    except (LeftEarly, Diverged) as ended:
        return ended  # the log has reported it
    except RanksFailed:
        if interrupts.first is not None:
            raise KeyboardInterrupt from None
        raise


def refuse_used_gpu(ranks: int) -> None:
    """Refuse to fork a process that has used a GPU, whose driver does not survive that.

    Raises:
        UserError: it has.
    """
    import torch

    if torch.cuda.is_initialized():  # torch.cuda.is_available() would initialise the driver
        fix = "restart the notebook, and let trireme.train be the first that uses a GPU"
        raise UserError(Problem("nproc", "cannot fork: this process has used a GPU already", fix, ranks))


def _configuration(ranks: int, folder: str) -> LaunchConfig:
    """The same configuration as accelerate's notebook launcher, which however does not let us choose the signals."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.utils.distributed import get_free_port
    from torch.distributed.launcher import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id="notebook",
        rdzv_backend="static",
        rdzv_endpoint=f"127.0.0.1:{get_free_port()}",
        rdzv_configs={"rank": 0},
        max_restarts=0,
        start_method="spawn" if torch.version.hip or torch.xpu.is_available() else "fork",
        signals_to_handle=",".join(n.name for n in TORCHS_SIGNALS if signal.getsignal(n) != signal.SIG_IGN),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )


def _failures(error: ChildFailedError, folder: str, ranks: int, signals: dict[int, int]) -> dict[int, ProcessFailure]:
    """Failures by rank, from error files and signals. For functions, torch itself reports only one rank, which need not
    be the first that failed.

    Args:
        signals: number of the signal that ended a rank, by rank.
    """
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    files = {rank: _error_of(folder, rank) for rank in range(ranks)}
    left = {rank: ProcessFailure(rank, 0, 1, str(file)) for rank, file in files.items() if file.exists()}
    killed = {rank: ProcessFailure(rank, 0, -number, str(files[rank])) for rank, number in signals.items()}
    told = {rank: failure for rank, failure in error.failures.items() if failure.exitcode < 0 or not (left or killed)}
    return {**killed, **told, **left}


def _rank(recipe: RecipeConfig, resume: str, folder: str) -> None:
    """Body of a forked rank. OpenMP's threads do not survive a fork, and waiting for them would hang; so a rank has one
    thread if the notebook had several."""
    import torch

    from ..trainer.build import train

    rank = int(os.environ["RANK"])
    os.environ[ERROR_FILE] = str(_error_of(folder, rank))
    Path(folder, f"rank{rank}.pid").write_text(str(os.getpid()))
    if rank:  # only rank 0 prints in the notebook
        log = _log_of(Path(recipe.run.dir), rank)
        log.parent.mkdir(exist_ok=True)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else cores_per_rank(int(os.environ["WORLD_SIZE"])))

    def go() -> None:
        result = train(recipe, resume=resume)
        if result.not_finite:
            raise Diverged
        if result.interrupted:
            raise LeftEarly

    code = run_rank(go)
    if code:
        os._exit(code)  # without waiting for peers in the destructors of the process group


class _Interrupts:
    """Handler that relays SIGINT to ranks: at the first one they save and leave, at the second they are killed."""

    def __init__(self, folder: str) -> None:
        self.folder, self.owner = Path(folder), os.getpid()
        self.first: float | None = None
        """Time of the first SIGINT (monotonic seconds)."""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:  # a forked rank that is not training yet has inherited this handler
            signal.default_int_handler(number, frame)
        now = time.monotonic()
        if self.first is None:
            self.first = now
            self._send(RELAYED_AS[signal.SIGINT])
        elif now - self.first > SAME_KEYSTROKE:
            self._send(signal.SIGKILL)
            signal.default_int_handler(number, frame)

    def _send(self, number: signal.Signals) -> None:
        for file in self.folder.glob("rank*.pid"):
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), number)


@contextmanager
def _interruptible(folder: str) -> Iterator[_Interrupts]:
    """Context in which SIGINT is relayed to ranks; afterwards all signal handlers are restored."""
    interrupts = _Interrupts(folder)
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *TORCHS_SIGNALS)}
    signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _error_of(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank{rank}.json"


def _log_of(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"rank{rank}.out"
