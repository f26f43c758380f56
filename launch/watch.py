"""Show live progress in a notebook: a bar and the newest metrics, read from the run's ``metrics.jsonl``. Also tell
whether this process is a notebook, and make notebooks draw matplotlib's figures.

The ranks may be other processes, which cannot draw in the notebook; so the notebook reads the file that rank 0 writes.
Nothing is drawn before the file has a line: by then all ranks have been forked, and none inherits a display that is
half drawn.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..trainer.callbacks.metrics_file import FILE_NAME, read_metrics
from ..trainer.callbacks.progress import WATCHED

EVERY_SECONDS = 0.5


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    try:
        from IPython import get_ipython  # type: ignore[import-not-found]
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def show_figures() -> None:
    """Make a notebook draw matplotlib's figures, as importing pyplot would; outside a notebook, do nothing."""
    if in_notebook():
        from IPython import get_ipython  # type: ignore[import-not-found]
        from IPython.core.pylabtools import select_figure_formats  # type: ignore[import-not-found]

        select_figure_formats(get_ipython(), {"png"})


@contextmanager
def watched(run_dir: Path, steps: int | None) -> Iterator[None]:
    """Show the progress of a run while the block runs; outside a notebook, do nothing.

    Args:
        steps: last step of the run; None if it is not known yet.
    """
    if not in_notebook():
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_draw, args=(run_dir / FILE_NAME, steps, over), daemon=True)
    os.environ[WATCHED] = "1"
    thread.start()
    try:
        yield
    finally:
        del os.environ[WATCHED]
        over.set()
        thread.join(timeout=10)


def _draw(file: Path, steps: int | None, over: threading.Event) -> None:
    from IPython.display import display  # type: ignore[import-not-found]

    handle, seen = None, _changed(file)
    while True:
        last = over.wait(EVERY_SECONDS)
        now = _changed(file)
        if now != seen:
            seen, bar = now, _progress_bar(read_metrics(file), steps)
            if handle is None:
                handle = display(bar, display_id=True)
            else:
                handle.update(bar)
        if last:
            return


def _changed(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _progress_bar(lines: list[dict[str, Any]], steps: int | None) -> Any:
    from IPython.display import HTML  # type: ignore[import-not-found]

    step = max((line["step"] for line in lines), default=0)
    newest: dict[str, Any] = {}
    for line in lines[-50:]:
        newest.update(line)
    parts = [f"{name} {value:.4g}" for name, value in newest.items() if isinstance(value, float) and name != "epoch"]
    bar = f'<progress value="{step}" max="{steps or step or 1}" style="width:20em"></progress>'
    return HTML(f"<div>{bar} step {step}{f' of {steps}' if steps else ''} &nbsp; {' &middot; '.join(parts)}</div>")
