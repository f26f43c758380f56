"""The base class of trackers: callbacks that report a run to a service or a viewer. Once training has begun, a failure
of a tracker does not end the run.

A tracker for one service is a small subclass (``wandb.py`` is an example). It says how a run begins there (``start``),
how metrics are written (``write``), how files are kept (``keep``) and how the run ends (``finish``). The base class
does the rest. Only the main rank reports. Library and login are checked when the tracker is constructed, which
``trireme check`` does before any process starts. The service's id of the run is kept in the run folder, so that a
resume continues that run. The metrics of each step are reported once. A thread does the work (``sender.py``), so that
no step waits for a disk or a network.
"""

import contextlib
import importlib
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import Problem, UserError, refuse
from ..callbacks.callback import Metrics
from ..interruption import SIGNALS
from .about_run import AboutRun, about_run
from .kept_files import files_of_run, forget_all, linked
from .line import Line, Status
from .reported import Reported
from .sender import Sender, one_line
from .tracker_library import missing_library
from .tracker_options import TrackerOptions

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
LEAVING_SECONDS = 10.0
"""Most seconds that an interrupted run waits for a tracker, since a scheduler kills it soon."""
_accepted: set[str] = set()
"""Logins that this process has checked: constructors run twice, in the check and in the run."""


class NoLogin(Exception):
    """A service refuses the login, or there is none; the text says why, ``fix`` what to do."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.fix = fix


@dataclass(eq=False)
class Tracker(TrackerOptions):
    """A tracker of one service.

    Raises:
        ValueError: an option makes no sense.
        UserError: the library is missing, or the service refuses the login.
    """

    TITLE: ClassVar[str] = ""
    """Name for people."""
    LIBRARY: ClassVar[str] = ""
    """Module that must be importable."""
    PACKAGE: ClassVar[str] = ""
    """Name of the package for pip."""
    KEY: ClassVar[str] = ""
    """Name in ``tracker=...`` and in the run folder's notes."""
    TRIES_AGAIN: ClassVar[bool] = True
    """Whether lines that could not be written are written later; else the first failure switches the tracker off."""
    REWINDS: ClassVar[bool] = False
    """Whether a resume hides what was reported of later steps, so that repeated steps are reported again."""
    KEEPS: ClassVar[tuple[str, ...]] = ("checkpoints", "curve", "samples", "log")
    """Kinds of ``artifacts`` that the service takes."""
    VARIABLES: ClassVar[tuple[str, ...]] = ()
    """Environment variables that ``login`` depends on."""
    LOGGERS: ClassVar[tuple[str, ...]] = ()
    """Loggers of the library, which are silenced below errors: a failure is said once, by trireme."""

    def __post_init__(self) -> None:
        refuse(self.flaws())
        if problem := missing_library(self.KEY, self.TITLE, self.LIBRARY, self.PACKAGE):
            raise UserError(problem)
        self._check_login()
        self._sender: Sender | None = None
        self._trainer: Any = None
        self._status: Status = "failed"
        self._reason = ""
        self._kept: dict[str, int] = {}

    # -- written by each tracker ------------------------------------------------------------------------------

    def flaws(self) -> Iterator[str]:
        """Options that make no sense, each as ``field=value is wrong; do this``."""
        if not self.project.strip():
            yield f"project={self.project!r} is empty; name a project, such as trireme"
        if self.system_seconds is not None and not 1 <= self.system_seconds < math.inf:
            yield f"system_seconds={self.system_seconds} is below 1 or infinite; use 30, or null for no figures"
        if not 0 <= self.patience < math.inf:
            yield f"patience={self.patience} is negative or infinite; use seconds, such as 120"
        if not_kept := [kind for kind in self.artifacts if kind not in self.KEEPS]:
            kept = f"it keeps {', '.join(self.KEEPS)}" if self.KEEPS else "leave artifacts out"
            yield f"artifacts={self.artifacts!r} is wrong because {self.TITLE} keeps no {not_kept[0]}; {kept}"

    def login(self) -> None:
        """Ask the service whether this run may report to it; called once, on the main rank, before anything is built.

        Raises:
            NoLogin: it may not.
            Exception: the service cannot be reached.
        """

    def place(self) -> str:
        """Key of the settings that ``login`` depends on (server, mode). A login is checked once for each key."""
        return str([os.environ.get(name) for name in self.VARIABLES])

    def module(self, name: str = "") -> Any:
        """A module of the library, its main one by default; typed as Any, since most libraries are not installed."""
        return importlib.import_module(name or self.LIBRARY)

    def start(self, run: AboutRun) -> str:
        """Begin the run, or go on with the one of ``run.id``; called in the main thread.

        Returns:
            The id under which a resume finds it.
        """
        raise NotImplementedError

    def view(self) -> str:
        """The command or address that shows what a run has reported, once it has begun; empty if there is none."""
        return ""

    def write(self, lines: Sequence[Line]) -> None:
        """Write lines of metrics; called in the sender's thread."""
        raise NotImplementedError

    def keep(self, kind: str, path: Path, step: int) -> None:
        """Keep a file, or the folder of a checkpoint; called in the sender's thread."""

    def rewind(self, step: int) -> None:
        """Training goes on from ``step`` after a rollback: later steps are reported again, with other values."""

    def finish(self, status: Status, reason: str) -> None:
        """End the run; called in the sender's thread."""

    # -- events -----------------------------------------------------------------------------------------------

    def on_train_begin(self, trainer: "Trainer", state: "TrainerState", control: "Control") -> None:
        if not trainer.mesh.is_main:
            return
        if self._sender is not None:  # after a rollback
            return self._sender.go_back(state.step)
        self._trainer, self._status = trainer, "failed"
        forget_all(trainer.run_dir, self.KEY)
        reported = Reported(trainer.run_dir, self.KEY)
        run = about_run(trainer, self, reported.id)
        try:
            with undisturbed(self.LIBRARY, self.LOGGERS):
                reported.id = self.start(run)
        except Exception as error:  # libraries raise errors of many types
            log.warning("%s is off: %s", self.TITLE, one_line(error))
            return
        log.info("this run reports to %s%s", self.TITLE, f": {self.view()}" if self.view() else "")
        if self.REWINDS:
            reported.go_back(state.step)
        self._sender = Sender(self, reported, self.system_seconds, trainer.mesh.device)
        for line in trainer.history.lines:  # a run that was killed may not have reported its last lines
            self._sender.line(line.get("step", 0), line)

    def on_log(self, trainer: "Trainer", state: "TrainerState", control: "Control", metrics: Metrics) -> None:
        if self._sender is not None:
            self._sender.line(metrics.get("step", state.step), metrics)

    def on_save(self, trainer: "Trainer", state: "TrainerState", control: "Control", path: Path) -> None:
        if self._sender is None:
            return
        if "checkpoints" in self.artifacts and (folder := linked(path, trainer.run_dir, self.KEY)):
            self._sender.file("checkpoints", folder, state.step)
        self._keep_files(trainer, state.step, [kind for kind in self.artifacts if kind != "log"])

    def on_train_end(self, trainer: "Trainer", state: "TrainerState", control: "Control") -> None:
        if self._sender is None:
            return
        self._status, self._reason = "finished", control.reason
        if control.interrupted:
            self._status = "interrupted"
        elif not all(math.isfinite(trainer.metrics.get(name) or 0.0) for name in ("loss", "eval_loss")):
            self._status, self._reason = "failed", "the loss is not finite"
        self._keep_files(trainer, state.step, self.artifacts)

    def close(self) -> None:
        error = sys.exc_info()[1]
        if self._sender is None or (error is None and self._trainer.control.rollback):
            return
        if error is not None:
            self._status, self._reason = "failed", f"{type(error).__name__}: {one_line(error)}"
        sender, self._sender = self._sender, None
        brief = self._status == "interrupted" or isinstance(error, KeyboardInterrupt)
        sender.finish(self._status, self._reason, min(self.patience, LEAVING_SECONDS) if brief else self.patience)

    def _keep_files(self, trainer: "Trainer", step: int, kinds: Sequence[str]) -> None:
        """Keep files of these kinds that have changed since they were kept."""
        assert self._sender is not None
        for kind, path in files_of_run(trainer.run_dir, kinds):
            changed = path.stat().st_mtime_ns
            if self._kept.get(kind) != changed:
                self._kept[kind] = changed
                self._sender.file(kind, path, step)

    # -- checks -----------------------------------------------------------------------------------------------

    def _check_login(self) -> None:
        where = f"{self.KEY} {self.place()}"
        if where in _accepted or os.environ.get("RANK", "0") != "0":  # other ranks, maybe of other hosts, do not report
            return
        try:
            with undisturbed(self.LIBRARY, self.LOGGERS):
                self.login()
        except NoLogin as error:
            raise UserError(Problem("tracker", f"{self.TITLE}: {error}", error.fix, self.KEY)) from None
        except Exception as error:
            from ..restart import attempt  # imported here, since only this failure needs it

            if attempt():  # ranks that are started again must go on, and the service may be back soon
                log.warning("%s cannot be reached now: %s", self.TITLE, one_line(error))
                return
            why = f"{self.TITLE} cannot be reached: {one_line(error)}"
            raise UserError(Problem("tracker", why, self.offline_fix(), self.KEY)) from None
        _accepted.add(where)

    def offline_fix(self) -> str:
        """The fix for a service that cannot be reached."""
        modes = {each.name for each in self.__dataclass_fields__.values()}
        offline = f"write callbacks.{self.KEY}.mode=offline" if "mode" in modes else f"leave {self.KEY} out"
        return f"look at the network and the address, or {offline}"


@contextmanager
def undisturbed(library: str, loggers: Sequence[str] = ()) -> Iterator[None]:
    """Context in which a library is imported and may install handlers of signals and exceptions; afterwards the run's
    handlers are restored. The library logs critical messages only, since trireme logs failures itself."""
    hook = sys.excepthook
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        importlib.import_module(library)
        for name in loggers:  # after the import, which sets their levels
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        sys.excepthook = hook
        for number, handler in before.items():
            if handler is not None:
                with contextlib.suppress(ValueError):  # not in the main thread
                    signal.signal(number, handler)
