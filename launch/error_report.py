"""Turn a command's error into a readable message, or lines of JSON, and an exit code that scripts can rely on.

0 done · 1 failed (one traceback; for a component of the user's own, its name and place) · 2 the user's mistake (no
traceback unless ``--debug``) · 3 the run ended with a loss or weights that are not finite · 75 stopped early with
everything saved (by a signal or the wall-clock limit): the same command resumes · 130 Ctrl-C, nothing saved.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TextIO

from ..errors import ComponentFailed, Problem, UserError, short

FAILED, USER_ERROR, DIVERGED, SAVED, INTERRUPTED = 1, 2, 3, 75, 130  # 75: EX_TEMPFAIL of sysexits.h, "try again later"


_as_json = False
"""Whether problems are lines of JSON, as ``run.log_format=json`` asks of the log."""


def speak_json(on: bool) -> None:
    """From now on, report problems as lines of JSON, or as text."""
    global _as_json
    _as_json = on


class RanksFailed(Exception):
    """A rank that this process started has failed; the text is the complete message."""

    signal = ""
    """Name of the signal that ended the rank, if one did."""


class LeftEarly(Exception):
    """A run stopped before its end and is saved; the log has reported it."""


class Diverged(Exception):
    """A run ended with a loss or weights that are not finite; the log has reported it."""


def guard(function: Callable[[], Any], debug: bool = False) -> int:
    """Call ``function``, show its error if it fails, and return the exit code."""
    try:
        function()
    except UserError as error:
        if debug:
            traceback.print_exc()
        show_problems(error.problems)
        return USER_ERROR
    except LeftEarly:
        return SAVED
    except Diverged:
        return DIVERGED
    except RanksFailed as error:
        print(_json_line(str(error)) if _as_json else error, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output (head, less) has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        show_crash(error, debug)
        return FAILED
    return 0


def show_crash(error: Exception, debug: bool = False) -> None:
    """Print a traceback on standard error; for a user's own component only its problem, unless ``debug``."""
    if debug or not isinstance(error, ComponentFailed):
        traceback.print_exception(error)
    else:
        show_problems([error.problem])


def show_problems(problems: Sequence[Problem | str], stream: TextIO | None = None) -> None:
    """Print problems on standard error, numbered if there are several: field and value, reason, fix."""
    out = stream or sys.stderr
    if _as_json and stream is None:
        print(*map(_json_line, problems), sep="\n", file=out, flush=True)
        return
    bold, plain = ("\033[1m", "\033[0m") if out.isatty() else ("", "")
    if len(problems) > 1:
        print(f"{len(problems)} problems:", file=out)
    for number, problem in enumerate(problems, 1):
        mark = f"{number}. " if len(problems) > 1 else ""
        head, *rest = str(problem).splitlines() or [""]
        lines = [f"{mark}{bold}{head}{plain}", *(" " * len(mark) + line for line in rest)]
        print("\n".join(lines), file=out, flush=True)


def _json_line(problem: Problem | str) -> str:
    """A problem as one object: its parts, and the whole message."""
    parts: dict[str, Any] = {}
    if isinstance(problem, Problem):
        value = problem.value if isinstance(problem.value, bool | int | str | None) else short(problem.value)
        parts = {"field": problem.field, "value": value, "why": problem.why, "fix": problem.fix}
    return json.dumps({"level": "error", "message": str(problem), **parts})
