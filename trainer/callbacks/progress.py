"""Progress callback: show training progress on rank 0, as a live bar on a terminal or plain lines in a file or pipe.

While the bar is live, all other output is printed above it: rich redirects ``print``, and log handlers that write to
the terminal use the bar's console until ``close``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .callback import Callback, Metrics
from .line_text import evaluation_parts, number, training_parts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


WATCHED = "TRIREME_WATCHED"
"""Variable that is set if something else shows the progress of the run, such as a notebook."""


class Progress(Callback):
    """Shows step, loss, learning rate, tokens per second, memory, remaining time, and every evaluation.

    Args:
        plain_every: seconds between two plain lines without a terminal; the first and the last line are always shown.
        refresh_per_second: how often the live bar is drawn per second.
    """

    def __init__(self, plain_every: float = 10.0, refresh_per_second: float = 4.0) -> None:
        if plain_every < 0:
            raise ValueError(f"plain_every={plain_every} is negative; use 0 or more seconds")
        if refresh_per_second <= 0:
            raise ValueError(f"refresh_per_second={refresh_per_second} is not above 0; use for example 4")
        self.plain_every, self.refresh_per_second = plain_every, refresh_per_second
        self._main = False
        self._bar: Bar | None = None
        self._undo = contextlib.ExitStack()
        self._started = self._shown_at = 0.0
        self._first_step = 0
        self._waiting = ""  # the newest plain line that was not shown
        self._status: list[str] = []  # second line of the bar: the newest training line, then the newest evaluation
        self._evaluation = ""
        self._loss_at = float("-inf")

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        logs_all = trainer.recipe.run.log_format == "json"
        self._main = trainer.mesh.is_main and WATCHED not in os.environ and not logs_all
        self._started, self._first_step = time.monotonic(), state.step
        self._shown_at = float("-inf")
        console = _terminal() if self._main and trainer.recipe.run.progress else None
        if console is not None:
            self._bar = _make_bar(console, self.refresh_per_second, lambda: _evaluating(trainer))
            self._bar.add_task(trainer.run_dir.name, total=_last_step(state), completed=state.step, status="")
            self._undo.callback(self._bar.stop)
            terminals = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
            self._bar.start()
            _log_above(console, terminals, self._undo)

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=state.step)
            self._show_loss(trainer, self._bar)

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        if not self._main:
            return
        if any(name.startswith("eval_") for name in metrics):
            self._show_evaluation(state, metrics)
            return
        self._status = training_parts(metrics, trainer.mesh.device)
        if self._bar is not None:
            self._update_status(self._bar)
            return
        total, now = _last_step(state), time.monotonic()
        self._waiting = "  ".join(
            [f"step {state.step}/{total}", *self._status, f"eta {self._eta(state.step, total, now)}"]
        )
        if now - self._shown_at >= self.plain_every or state.step >= total:
            self._show_waiting(now)

    def _show_loss(self, trainer: Trainer, bar: Bar) -> None:
        """Show the loss of this step if there is a single rank; over several ranks it would have to be summed. On a GPU
        reading it waits for the step, so it is read once a second."""
        now = time.monotonic()
        pause = 0.0 if trainer.mesh.device.type == "cpu" else 1.0
        if trainer.mesh.world_size > 1 or trainer.loss is None or not self._status or now - self._loss_at < pause:
            return
        self._loss_at = now
        self._status[0] = f"loss {number(trainer.loss.total.item() / max(trainer.loss.labels, 1))}"
        self._update_status(bar)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._show_waiting(time.monotonic())
        self._stop_bar()  # the bar stays on the screen, above the output of later callbacks

    def close(self) -> None:
        self._stop_bar()

    def _stop_bar(self) -> None:
        self._undo.close()
        self._bar = None

    def _show_evaluation(self, state: TrainerState, metrics: Metrics) -> None:
        parts = evaluation_parts(metrics)
        self._evaluation = next((part for part in parts if part.startswith("eval_loss ")), parts[0])
        line = "  ".join([f"step {state.step}/{_last_step(state)}", *parts])
        if self._bar is not None:
            from rich.text import Text

            self._bar.console.print(Text(line, style="green"))
            self._update_status(self._bar)
            return
        self._show_waiting(time.monotonic())  # the training line of this step comes first
        print(line, flush=True)

    def _update_status(self, bar: Bar) -> None:
        bar.update(bar.task_ids[0], status="  ".join([*self._status, self._evaluation]))

    def _show_waiting(self, now: float) -> None:
        if self._waiting:
            print(self._waiting, flush=True)
            self._waiting, self._shown_at = "", now

    def _eta(self, step: int, total: int, now: float) -> str:
        per_step = (now - self._started) / max(step - self._first_step, 1)
        minutes, seconds = divmod(round(per_step * max(total - step, 0)), 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _last_step(state: TrainerState) -> int:
    return state.stop_at or state.max_steps


def _terminal() -> Console | None:
    """A console on stderr, else stdout, if it is a terminal that can redraw a line."""
    from rich.console import Console

    for stderr, stream in ((True, sys.stderr), (False, sys.stdout)):
        console = Console(stderr=stderr, highlight=False)
        if stream.isatty() and not console.is_dumb_terminal:
            return console
    return None


def _evaluating(trainer: Trainer) -> str:
    """The second line during an evaluation; rich's thread calls this at every drawing."""
    return f"evaluating, batch {trainer.evaluating}" if trainer.evaluating else ""


def _make_bar(console: Console, refresh_per_second: float, instead: Callable[[], str]) -> Bar:
    """A bar of two lines that fits 80 columns: the position of training, and its metrics.

    Args:
        instead: gives a text that replaces the metrics in the second line; empty keeps them.
    """
    from rich.console import RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar
    from rich.text import Text

    class TwoLines(Bar):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if status := instead() or task.fields["status"]:
                    yield Text(f"  {status}", style="cyan", no_wrap=True, overflow="ellipsis")

    return TwoLines(
        TextColumn("[bold]{task.description}", markup=True),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
        refresh_per_second=refresh_per_second,
        # Only streams to a terminal are redirected; those to a file or pipe do not disturb the bar.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )


def _log_above(console: Console, terminals: tuple[Any, ...], undo: contextlib.ExitStack) -> None:
    """Point log handlers that write to one of ``terminals`` at the live console; ``undo`` points them back."""
    from rich.logging import RichHandler

    loggers = [item for item in logging.root.manager.loggerDict.values() if isinstance(item, logging.Logger)]
    for handler in {handler for logger in (logging.root, *loggers) for handler in logger.handlers}:
        if isinstance(handler, RichHandler):
            undo.callback(setattr, handler, "console", handler.console)
            handler.console = console
        elif isinstance(handler, logging.StreamHandler) and handler.stream in terminals and handler.stream.isatty():
            old = handler.setStream(sys.stderr if console.stderr else sys.stdout)  # rich's proxy by now
            undo.callback(handler.setStream, old)
