"""Tracker for TensorBoard: write scalars, recipe, curve plot and samples to ``tensorboard`` in the run folder.

View them with ``tensorboard --logdir runs``. Events are written directly, in TensorBoard's record format, and not by
``torch.utils.tensorboard``: its writer thread raises a traceback when the disk is full. The recipe is in the TEXT tab
and, as hyperparameters with the status of the run, in the HPARAMS tab.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import Tracker

FOLDER = "tensorboard"


@dataclass(eq=False)
class TensorBoard(Tracker):
    """Writes events that TensorBoard reads."""

    TITLE: ClassVar = "TensorBoard"
    LIBRARY: ClassVar = "tensorboard"
    PACKAGE: ClassVar = "'trireme-train[tensorboard]'"
    KEY: ClassVar = "tensorboard"
    TRIES_AGAIN: ClassVar = False  # half a record may have been written, and nothing after it can be read
    REWINDS: ClassVar = True
    KEEPS: ClassVar = ("curve", "samples")

    def start(self, run: AboutRun) -> str:
        self._folder, self._step = run.folder / FOLDER, run.step
        self._file = EventFile(self._folder, run.step)
        names = {"name": run.name, "project": run.project, "group": run.group, "trial": run.trial, "tags": run.tags}
        self._file.text("recipe", f"```json\n{json.dumps(names | run.config, indent=1, default=str)}\n```", run.step)
        self._file.begin_session(run.flat | {name: value for name, value in names.items() if _is_plain(value)})
        return FOLDER

    def view(self) -> str:
        return f"tensorboard --logdir {self._folder.parent}"

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._step = max(line.step, self._step)
            self._file.scalars(line.step, line.numbers, line.time)
        self._file.flush()

    def keep(self, kind: str, path: Path, step: int) -> None:
        if kind == "curve":
            self._file.image(kind, path.read_bytes(), step)
        else:
            self._file.text(kind, f"```\n{path.read_text(encoding='utf-8', errors='replace')}\n```", step)
        self._file.flush()

    def rewind(self, step: int) -> None:
        self._file.close()
        self._file = EventFile(self._folder, step)

    def finish(self, status: Status, reason: str) -> None:
        with contextlib.suppress(OSError):  # closing tries a failed write again
            self._file.text("status", f"{status}: {reason}" if reason else status, self._step)
            self._file.end_session(status)
            self._file.close()


class EventFile:
    """One file of TensorBoard events.

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
        self.flush()

    def scalars(self, step: int, numbers: dict[str, float], at: float) -> None:
        """Add the numbers of one step by tag; ``at``: seconds since the epoch."""
        values = [self._summary.Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add(step=step, summary=self._summary.Summary(value=values), wall_time=at)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text in Markdown to the tab of texts."""
        from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

        proto: Any = (tensor_pb2, tensor_shape_pb2, types_pb2)
        shape = proto[1].TensorShapeProto(dim=[proto[1].TensorShapeProto.Dim(size=1)])
        kind = proto[2].DT_STRING
        tensor = proto[0].TensorProto(dtype=kind, string_val=[text.encode()], tensor_shape=shape)
        about = self._summary.SummaryMetadata
        plugin = about(plugin_data=about.PluginData(plugin_name="text"))
        value = self._summary.Summary.Value(tag=f"{tag}/text_summary", metadata=plugin, tensor=tensor)
        self._add(step=step, summary=self._summary.Summary(value=[value]))

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Add a PNG image."""
        width, height = struct.unpack(">II", png[16:24])
        image = self._summary.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._add(step=step, summary=self._summary.Summary(value=[self._summary.Summary.Value(tag=tag, image=image)]))

    def begin_session(self, values: dict[str, Any]) -> None:
        """Add hyperparameters, for the tab HPARAMS."""
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        proto: Any = plugin_data_pb2
        info = proto.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else ""
            setattr(info.hparams[name], kind or "number_value", value)
        self._hparams(metadata.SESSION_START_INFO_TAG, proto.HParamsPluginData(session_start_info=info))

    def end_session(self, status: Status) -> None:
        """Add the status of a run that has ended."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        names: Any = api_pb2
        proto: Any = plugin_data_pb2
        code = names.STATUS_SUCCESS if status == "finished" else names.STATUS_FAILURE
        info = proto.SessionEndInfo(status=code, end_time_secs=time.time())
        self._hparams(metadata.SESSION_END_INFO_TAG, proto.HParamsPluginData(session_end_info=info))

    def _hparams(self, tag: str, data: Any) -> None:
        from tensorboard.plugins.hparams import metadata

        about = metadata.create_summary_metadata(data)
        value = self._summary.Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
        self._add(summary=self._summary.Summary(value=[value]))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(self._event.Event(**{"wall_time": time.time(), **fields}).SerializeToString())


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
