"""Write a rank's failure to the error file of torch elastic, which trireme's launcher and torchrun read."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

from ..errors import ComponentFailed, Problem, UserError

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Variable with the path of this rank's error file; set by the launcher."""


def record(error: Exception, when: float | None = None, debug: bool = False) -> None:
    """Write ``error`` into this rank's error file, if its launcher has named one.

    Args:
        when: time of the error (seconds since the epoch); None is now. torch's agent shows the failure of the earliest
            whole second, and among several in that second the lowest rank's.
        debug: write the traceback of a failed component too.
    """
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    when = time.time() if when is None else when
    user = isinstance(error, UserError)
    short = user or (isinstance(error, ComponentFailed) and not debug)
    stack = str(error) if short else "".join(traceback.format_exception(error))
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
    except OSError:  # a full disk must neither hide the error itself nor leave a broken file
        Path(path).unlink(missing_ok=True)
        print(stack, file=sys.stderr)
