"""TensorBoard tracker: write training and evaluation scalars into ``<run folder>/tensorboard``.

View them with ``tensorboard --logdir runs``. A tracker must never end a run: if it cannot write, it warns once and
writes no more. So events are written directly, in TensorBoard's record format, and not by
``torch.utils.tensorboard``, whose writer has a thread in which a full disk ends in a traceback.
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
        # Every rank looks for the library, so that all fail together, and before the model is built.
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
            with contextlib.suppress(OSError):  # closing tries the failed write again
                writer.close()


class EventFile:
    """One file of TensorBoard events, which is flushed at every ``write``.

    Args:
        folder: folder of the file, created if needed; a resumed run adds a file to the earlier ones.
        last_step: step of the resume; TensorBoard hides later steps of earlier files, since they are logged again.

    Raises:
        OSError: in the constructor and in each method, if the file cannot be written.
    """

    def __init__(self, folder: Path, last_step: int = 0) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(exist_ok=True)
        # TensorBoard reads the files of a folder in the order of their names.
        self._file = open(folder / f"events.out.tfevents.{time.time_ns()}", "xb")  # noqa: SIM115 - open as long as the run
        self._records = RecordWriter(self._file)
        # Typed as Any: protocol buffers create their classes at import, which a type checker cannot see.
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
