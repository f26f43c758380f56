"""Metrics-file callback: write the metrics of all logged steps and evaluations to ``metrics.jsonl`` in the run folder.
A function here reads the file back.

Each line of the file is a JSON object. Lines are written without buffering, so none is lost when the process is killed.
A resume removes the lines of steps after its checkpoint. When the disk is full, lines wait in memory and are written
later.

JSON has no NaN and no infinity, so they are written as the strings "nan", "inf" and "-inf". Strict parsers can read the
file, ``float("nan")`` gives the value back (as ``read_metrics`` does), and a diverged value differs from a missing one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ...models.json_file import parse_json
from ..regular_files import read_regular
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
FILE_NAME = "metrics.jsonl"
NOT_FINITE = ("nan", "inf", "-inf")


def read_metrics(path: Path, last_step: int | None = None) -> list[Metrics]:
    """The lines of a metrics file in order, without lines that were cut off and lines after ``last_step``.

    Raises:
        OSError: the file cannot be read.
    """
    lines = []
    for raw in read_regular(path).splitlines():
        try:
            line = parse_json(raw)
        except ValueError:  # the line was cut off by a kill or a lost machine; covers UnicodeDecodeError
            continue
        if isinstance(line, dict) and (last_step is None or line.get("step", 0) <= last_step):
            lines.append({k: float(v) if isinstance(v, str) and v in NOT_FINITE else v for k, v in line.items()})
    return lines


def json_value(value: Any) -> Any:
    """A value that JSON can hold: plain numbers, and texts for those that are not finite."""
    if hasattr(value, "item"):  # a 0-dim tensor or a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: json_value(item) for key, item in value.items()}
    return [json_value(item) for item in value] if isinstance(value, list | tuple) else value


def _encode(metrics: Metrics) -> bytes:
    return json.dumps(json_value(metrics), allow_nan=False, ensure_ascii=False).encode() + b"\n"


class MetricsFile(Callback):
    """Writes ``metrics.jsonl`` on the main rank.

    Raises:
        UserError: in ``on_train_begin`` if the file cannot be written; in ``on_train_end`` if lines still wait for free
            space on the disk.
    """

    def __init__(self) -> None:
        self._path: Path | None = None  # stays None on the other ranks
        self._size = 0  # bytes of complete lines in the file
        self._pending: list[bytes] = []  # lines that are not written yet
        self._warned = False

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if not trainer.mesh.is_main:
            return
        self._path = trainer.run_dir / FILE_NAME
        try:
            self._size = _rewind(self._path, state.step)
        except OSError as error:
            raise UserError(
                Problem(
                    str(self._path), f"cannot be written ({error.strerror})", "free the disk or choose another run.dir"
                )
            ) from error

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        if self._path is not None:
            self._pending.append(_encode(metrics))
            self._write(self._path)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._path is None or not self._pending:
            return
        self._write(self._path)
        if self._pending:
            raise UserError(
                Problem(
                    str(self._path),
                    f"training is done, but the last {len(self._pending)} lines could not be written",
                    "free the disk and resume the run: it logs again what came after its last checkpoint",
                )
            )

    def close(self) -> None:
        if self._path is not None and self._pending:  # a last try; training has failed, and its error is reported
            self._write(self._path)

    def _write(self, path: Path) -> None:
        """Append all pending lines or none."""
        try:
            self._size = _append(path, self._size, b"".join(self._pending))
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written (%s); its lines wait in memory", path, error.strerror)
            self._warned = True
            return
        if self._warned:
            log.info("%s is written again, %d lines had waited", path, len(self._pending))
        self._pending.clear()
        self._warned = False


def _append(path: Path, size: int, data: bytes) -> int:
    """Write ``data`` after the first ``size`` bytes; returns the new size. A failed write leaves ``size`` bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        size = min(size, os.fstat(descriptor).st_size)  # the file may have been moved away meanwhile
        os.ftruncate(descriptor, size)  # drops half a line that an earlier failure left
        os.lseek(descriptor, size, os.SEEK_SET)
        rest = memoryview(data)
        try:
            while rest:  # on a full disk a write may first take a part without an error
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)
    return size + len(data)


def _rewind(path: Path, step: int) -> int:
    """Make the file hold the lines up to ``step`` only, by an atomic replacement; returns its size in bytes."""
    kept = read_metrics(path, step) if step and path.exists() else []
    data = b"".join(_encode(line) for line in kept)
    if not path.exists() or path.read_bytes() != data:
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return len(data)
