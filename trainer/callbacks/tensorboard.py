"""TensorBoard tracker: training and evaluation scalars in ``<run folder>/tensorboard``.

How to look: ``tensorboard --logdir runs``. A tracker watches training and must never end it: when it cannot write, it
says so once and stays silent from then on. That is why events are written here and now, with TensorBoard's own record
format, and not by ``torch.utils.tensorboard``: its writer has a thread, in which a full disk ends in a traceback.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from pathlib import Path

    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)


class TensorBoard(Callback):
    """Writes ``train/<name>`` and ``eval/<name>`` scalars against the step, on the main rank.

    Raises:
        UserError: the ``tensorboard`` library is not installed.
    """

    def __init__(self) -> None:
        # Looked for on every rank, so that all of them leave together, and before the model is built.
        if importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                Problem("tracker", "the tensorboard library is not installed", "pip install tensorboard", "tensorboard")
            )
        self._writer: EventFile | None = None

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if not trainer.mesh.is_main:
            return
        try:
            self._writer = EventFile(trainer.run_dir / "tensorboard", state.step)
        except OSError as error:
            log.warning("TensorBoard is off: %s", error)

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        if self._writer is None:
            return
        numbers = {_tag(k): float(v) for k, v in metrics.items() if k != "step" and type(v) in (int, float)}
        try:
            self._writer.write(metrics.get("step", state.step), numbers)
        except OSError as error:
            log.warning("TensorBoard is off: %s", error)
            self.close()

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(OSError):  # closing tries once more to write what failed
                writer.close()


class EventFile:
    """One file of TensorBoard events; every line is on its way to the disk when ``write`` returns.

    Args:
        folder: created if it is not there; a resumed run adds a file to those of its first part.
        last_step: what earlier files hold of later steps is hidden: after a resume those steps come again.

    Raises:
        OSError: here and in each method, when the file cannot be written.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._file = open(folder / f"events.out.tfevents.{time.time_ns()}", "xb")  # noqa: SIM115 - open as long as the run
        self._records = RecordWriter(self._file)
        # Any: protocol buffers make their classes when they are imported, which a type checker cannot see.
        self._event: Any = event_pb2
        self._summary: Any = summary_pb2
        self._add(file_version="brain.Event:2")
        if last_step:
            self._add(step=last_step + 1, session_log=self._event.SessionLog(status=self._event.SessionLog.START))
        self._file.flush()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Add the scalars of one step, by tag."""
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._add(step=step, summary=self._summary.Summary(value=values))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event.Event(wall_time=time.time(), **fields).SerializeToString())


def _tag(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
