"""Show the page of ``trireme report`` in a notebook, in an iframe.

::

    import trireme
    trireme.report("runs/one", "runs/two")      # or run.report() of a run that trireme.train gave back
"""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from ..errors import Problem, UserError
from .make_report import find_runs, html_of, make_report, write_page_of

HEIGHT = 800
"""Height of the frame in pixels."""


class ReportView:
    """A report that a notebook shows; it is made anew whenever it is shown, so it is up to date.

    Raises:
        UserError: a folder holds no run.
    """

    def __init__(self, *folders: str, height: int = HEIGHT) -> None:
        self.folders, self.height = folders, height
        make_report(find_runs(folders))  # mistakes are told at once, where they are made

    def save(self, file: str | Path) -> Path:
        """Write the page into a file; returns its path."""
        return write_page_of(self.folders, Path(file))

    def _repr_html_(self) -> str:
        page = escape(html_of(self.folders), quote=True)
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe title="report of runs" sandbox="allow-scripts" style="{style}" srcdoc="{page}"></iframe>'

    def __repr__(self) -> str:
        return f"ReportView({', '.join(map(repr, self.folders))})"


def report(*folders: str | os.PathLike[str], height: int = HEIGHT) -> ReportView:
    """The report of runs, studies or sweeps in these folders; a notebook shows it.

    Raises:
        UserError: a folder holds no run.
    """
    if not folders:
        raise UserError(Problem("trireme.report", "needs the folder of a run", 'write trireme.report("runs/NAME")'))
    return ReportView(*map(str, folders), height=height)
