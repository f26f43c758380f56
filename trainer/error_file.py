"""How a rank leaves word of its failure for who started it: the error file of torch elastic, read by torchrun too."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from ..errors import Problem, UserError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the path of this rank's error file; set by the launcher."""


def record(error: Exception, when: float | None = None) -> None:
    """Leave ``error`` in this rank's error file, if its launcher named one.

    Args:
        when: it was raised (seconds since the epoch), if not now. torch's agent shows the earliest failure, counted in
            whole seconds, and of those of one second the lowest rank's.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    when = time.time() if when is None else when
    user = isinstance(error, UserError)
    stack = str(error) if user else "".join(traceback.format_exception(error))
    extra = {"py_callstack": stack, "timestamp": str(int(when))}
    problems = (
        [vars(problem) if isinstance(problem, Problem) else problem for problem in error.problems] if user else None
    )
    data = {
        "message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra},
        "trireme": {"problems": problems, "time": when},
    }
    try:
        Path(path).write_text(json.dumps(data, default=str))
    except OSError:  # a full disk must not hide the error itself, nor leave a file that nobody can read
        Path(path).unlink(missing_ok=True)
        print(stack, file=sys.stderr)
