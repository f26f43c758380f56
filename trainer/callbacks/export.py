"""Export callback: write a checkpoint of the run as a model folder for ``transformers``, or its adapters as a folder
for peft. It does so at the end of training or, while training continues, after each save; a new export replaces the
one before.

Rank 0 exports in a background thread, one checkpoint at a time; the other ranks are not needed. Old checkpoints may be
removed during an export, so the thread reads hard links to the checkpoint's files. At the end of training, all ranks
wait for the export by repeating short collectives, so that even a long export causes no collective timeout. If an
export fails, the failure is reported and training continues.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...errors import UserError
from ...models.json_file import read_json
from ..checkpoint.export.export_folder import ExportOptions, export_quantised, export_source
from ..checkpoint.export.quantised_folder import QuantiseOptions
from ..checkpoint.layout import complete_checkpoints, not_finite, verify
from ..checkpoint.load.own_checkpoint import Checkpoint
from .callback import Callback, no_average

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
WAIT_SECONDS = 0.5
"""Seconds between two collectives of the waiting ranks, far below any timeout of collectives."""


GIVING_UP_SECONDS = 10.0
"""Seconds that a cancelled export gets to end; an upload cannot be cancelled."""


NOTES, NOTING = ".exported.json", threading.Lock()
"""File in the run folder with the exported checkpoint of every target, and the lock of the callbacks that write it."""


class Cancelled(Exception):
    """The export is cancelled, since training has failed or was interrupted."""


class Export(Callback):
    """Keeps a complete model in ``out``: that of the newest checkpoint, or of the last one.

    Args:
        at: ``end`` exports the last checkpoint, ``every_save`` every one; while an export runs, only the newest waits.
        dtype: data type of the exported weights: fp32, bf16 or fp16.
        ema: export the averaged weights.
        max_shard_size: size of the largest weight file, such as ``500MB`` or ``5GB``.
        memory: largest memory of the export, in addition to the largest tensor.
        out: folder of the export, replaced once a new export is complete; null takes ``exported`` in the run folder.
        merge: merge adapters into their base; else an adapter run exports its adapters, as peft does.
        quantize: how to quantise linear layers (nf4, fp4 or int8); adapters are merged into their base before.
    """

    def __init__(
        self,
        at: Literal["end", "every_save"] = "end",
        dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        ema: bool = False,
        max_shard_size: str = "5GB",
        memory: str = "1GiB",
        out: str | None = None,
        merge: bool = False,
        quantize: Literal["nf4", "fp4", "int8"] | None = None,
    ) -> None:
        if at not in ("end", "every_save"):
            raise ValueError(f"at={at!r} is not known; use end or every_save")
        self.at, self.out = at, out
        self.needs_average = ema
        kept = QuantiseOptions(quantize) if quantize else None
        self.options = ExportOptions(dtype, ema, max_shard_size, memory, merge, quantize=kept)
        self.keeps_all = False
        self._main = False
        self.waits = False
        """Whether an export was queued since ``queued`` was last called on rank 0."""
        self._saved: Path | None = None
        self._waiting: list[Path] = []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self.options.ema and trainer.ema is None:
            own = next((name for name, each in trainer.callbacks.items() if each is self), "export")
            raise UserError(no_average(f"callbacks.{own}.ema"))
        self.folder = Path(os.path.expanduser(self.out)) if self.out else trainer.run_dir / "exported"
        self.links = trainer.run_dir / ".exporting"
        self._main = trainer.mesh.is_main
        self._notes = trainer.run_dir / NOTES
        self._stop.clear()  # after a rollback
        if self._main:
            shutil.rmtree(self.links, ignore_errors=True)  # left by a run that was killed

    def on_save(self, trainer: Trainer, state: TrainerState, control: Control, path: Path) -> None:
        if trainer.mesh.is_main:
            self._look_at(path)
        self.queued(trainer)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if control.interrupted:  # a scheduler does not wait for an export; the resumed run exports
            return
        best = trainer.ended_with
        if trainer.mesh.is_main and (self.at == "end" or self._saved is None or best not in (None, self._saved)):
            self._export_last(trainer)
        self.queued(trainer)
        while True:
            reason = trainer.leaving.asked()
            busy, leave = trainer.mesh.any_flags([self._busy(), bool(reason)])
            if not busy:
                return
            if leave:  # everything is saved; the same command exports later
                return control.interrupt(reason or "another rank was asked to leave")
            trainer.emit("on_wait")

    def close(self) -> None:
        """Cancel a running export: training has failed, or was interrupted."""
        self._stop.set()
        with self._lock:
            thread, self._waiting = self._thread, []
        if thread is not None:
            thread.join(GIVING_UP_SECONDS)
            self._thread = thread if thread.is_alive() else None
        if self._main:
            shutil.rmtree(self.links, ignore_errors=True)

    @property
    def writes_whole(self) -> bool:
        """Whether an adapter run writes its whole model; else the adapters alone."""
        return self.options.merge or self.options.quantize is not None

    @property
    def place(self) -> str:
        """Name of the export's target in the notes."""
        return str(self.folder)

    def exported(self, checkpoint: Path) -> bool:
        """Called in the thread when ``self.folder`` holds the model of ``checkpoint``.

        Returns:
            Whether the model has reached its target.
        """
        return True

    def queued(self, trainer: Trainer) -> None:
        """Called on all ranks when rank 0 may have begun an export, or queued one behind the running one."""

    def _look_at(self, path: Path) -> None:
        """Note a checkpoint that was saved, and export it if each is exported."""
        if reason := not_finite(path):
            log.warning("%s is not exported: it was saved with a fault: %s", path.name, reason)
            return
        self._saved = path
        if self.at == "every_save":
            self._enqueue(path)

    def _export_last(self, trainer: Trainer) -> None:
        """Export the checkpoint that the run ends with: the last one, or the best one if the recipe asks. A checkpoint
        that an earlier start of the run has exported is not exported again."""
        finite = (path for path in complete_checkpoints(trainer.store.root) if not_finite(path) is None)
        path = trainer.ended_with or self._saved or next(finite, None)
        before = self._saved is None or trainer.ended_with is not None
        noted = self._noted().get(self.place) if before and self.folder.exists() else None
        if path is not None and path.name == noted:
            return
        if path is None:
            log.warning(
                "nothing is exported: this run has no checkpoint that is finite (checkpoint.at_end=true saves one)"
            )
        else:
            self._enqueue(path)

    def _enqueue(self, path: Path) -> None:
        try:
            linked = self._link(path)
        except OSError as error:
            log.error("%s is not exported: %s", path.name, error.strerror or error)
            return
        with self._lock:
            passed_over, self._waiting = ([], self._waiting) if self.keeps_all else (self._waiting, [])
            self._waiting.append(linked)
            self.waits = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="export", daemon=True)
                self._thread.start()
        for folder in passed_over:
            self._forget(folder)

    def _link(self, path: Path) -> Path:
        """A folder of hard links to a checkpoint's files; the checkpoint itself if the file system has no links."""
        linked = self.links / path.name
        shutil.rmtree(linked, ignore_errors=True)
        try:
            shutil.copytree(path, linked, copy_function=os.link)
        except (shutil.Error, OSError):
            shutil.rmtree(linked, ignore_errors=True)
            return path
        return linked

    def _forget(self, linked: Path) -> None:
        if linked.parent == self.links:
            shutil.rmtree(linked, ignore_errors=True)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                checkpoint = self._waiting.pop(0)
            try:
                self._export(checkpoint)
            except Cancelled:
                return
            except UserError as error:
                log.error("%s was not exported; training goes on. %s", checkpoint.name, error)
            except Exception:
                log.exception("%s was not exported; training goes on", checkpoint.name)
            finally:
                self._forget(checkpoint)

    def _export(self, checkpoint: Path) -> None:
        self._check()
        reason = verify(checkpoint, contents=False)  # nodes may keep their own shards, so some may be missing here
        if reason:
            raise UserError(f"The checkpoint {reason}.")
        write = export_source if self.options.quantize is None else export_quantised
        write(Checkpoint(checkpoint), self.folder, self.options, replace=True, verify=False, check=self._check)
        if self.exported(checkpoint):
            with NOTING, suppress(OSError):  # without a note the checkpoint is exported again at the next start
                self._notes.write_text(json.dumps({**self._noted(), self.place: checkpoint.name}, indent=1))

    def _noted(self) -> dict[str, str]:
        """Target -> name of the checkpoint that was exported to it last."""
        try:
            return read_json(self._notes)
        except (OSError, ValueError):
            return {}

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled

    def _busy(self) -> bool:
        thread = self._thread
        if thread is None:
            return False
        thread.join(WAIT_SECONDS)
        return thread.is_alive()
