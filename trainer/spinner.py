"""Show a spinner on the terminal while a command starts up (imports, data, the model), and store whether the process
may draw bars and spinners at all (``run.progress``).

A process has one terminal, so it has one spinner. Without a terminal there is none, and ``say`` and ``stop`` do
nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.status import Status

_shown: list[Status] = []
"""The current spinner, if there is one."""
_drawing = True
"""Whether the recipe allows bars and spinners."""


def drawing_is_allowed() -> bool:
    """Whether the recipe allows bars."""
    return _drawing


def draws() -> bool:
    """Whether bars are drawn on standard error: it is a terminal, and the recipe allows them."""
    return _drawing and sys.stderr.isatty()


def allow_drawing(allowed: bool) -> None:
    """Draw from now on, or remove what is drawn and draw no more."""
    global _drawing
    _drawing = allowed
    if not allowed:
        stop()


@contextmanager
def spinning(text: str) -> Iterator[None]:
    """Show ``text`` with a spinner, if standard error is a terminal, until ``stop`` or the end of the block."""
    status = _on_terminal(text)
    if status is not None:
        status.start()
        _shown.append(status)
    try:
        yield
    finally:
        stop()


def say(text: str) -> None:
    """Change the text of the spinner."""
    for status in _shown:
        status.update(text)


def stop() -> None:
    """Remove the spinner from the terminal."""
    while _shown:
        _shown.pop().stop()


def _on_terminal(text: str) -> Status | None:
    if _shown or not draws():
        return None
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True, highlight=False)
    return None if console.is_dumb_terminal else Status(text, console=console)


def _let_go() -> None:
    """Detach a forked process from the spinner, whose lock a thread of the parent may hold forever there."""
    if _shown:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            setattr(sys, name, getattr(stream, "rich_proxied_file", stream))
        _shown.clear()


os.register_at_fork(after_in_child=_let_go)
