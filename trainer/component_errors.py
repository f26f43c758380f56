"""Turn exceptions of the user's own components into messages that name the recipe key and the line in the user's file.

An exception while a component runs is a crash (``ComponentFailed``, exit code 1): its cause may be the network, so a
launcher may restart the ranks. An exception in a constructor is a user error, since the constructor gets the recipe's
values; ``trireme check`` calls constructors too.

The whole traceback goes into the log file, and to the terminal with ``--debug``. Exceptions of trireme's own components
are passed on unchanged, since they are bugs in trireme.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ComponentFailed, Problem, UserError
from .component import NestedFailed
from .log_files import SHOWN
from .trainer_state import NotTheirs

OWN = "trireme."
CONSTRUCTOR = "its constructor"
log = logging.getLogger(SHOWN)


class component_errors:
    """Context that turns an exception into one that names the component at ``path``.

    Args:
        path: key of the recipe, such as ``callbacks.mine``.
        component: the component, or its class or function.
        doing: name of the called method, such as ``on_step_end``.
        only_its_file: take only exceptions whose traceback passes through the component's file, since other code runs
            inside too.

    Raises:
        UserError: its constructor has raised, or that of a component among its arguments, or a callback has set a field
            that only the engine may set.
        ComponentFailed: it has raised elsewhere.
    """

    def __init__(self, path: str, component: Any, doing: str, only_its_file: bool = False) -> None:
        self.path, self.component, self.doing, self.only_its_file = path, component, doing, only_its_file

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, stack: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception | SystemExit) or isinstance(error, UserError | ComponentFailed):
            return
        if isinstance(error, NestedFailed):
            log.error("%s", "".join(traceback.format_exception(error)))
            raise UserError(error.problem(self.path)) from error
        place = self._place(error)
        if not self._is_users(error) or (self.only_its_file and not place):
            return
        if isinstance(error, NotTheirs):
            why = f"{self.name} {error.what} in {self.doing}{place}: {error.why}"
            raise UserError(Problem(self.path, why, error.fix)) from error
        text = " ".join(str(error).split())
        why = f"{self.name} raises {type(error).__name__}{': ' if text else ''}{text} in {self.doing}{place}"
        log.error("%s", "".join(traceback.format_exception(error)))
        fix = "correct that code; the log file has the traceback, and --debug shows it"
        problem = Problem(self.path, why, fix)
        raise (UserError if self.doing == CONSTRUCTOR else ComponentFailed)(problem) from error

    @property
    def name(self) -> str:
        target = self._target
        return f"{target.__module__}.{target.__qualname__}"

    @property
    def _target(self) -> Any:
        return self.component if hasattr(self.component, "__qualname__") else type(self.component)

    def _is_users(self, error: BaseException) -> bool:
        """Whether the user's code is at fault: not trireme, not a lack of memory, not a lost peer."""
        import torch

        if isinstance(error, MemoryError | torch.OutOfMemoryError) or self._target.__module__.startswith(OWN):
            return False
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        return "torch/distributed/" not in innermost

    def _place(self, error: BaseException) -> str:
        return place_in(self._target, error)


def place_in(target: Any, error: BaseException) -> str:
    """The innermost line of a traceback in the file of a class or function, in brackets; empty if there is none."""
    try:
        file = inspect.getsourcefile(target)
    except TypeError:
        file = None
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
