"""Iterate over the training batches of a run, from the position where the run starts or resumes to the last step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil

from .cadence import last_step

if TYPE_CHECKING:
    from ..parallel.micro_batch import StepBatch
    from .data.corpus import TrainBatches
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")


class RunBatches:
    """This data rank's share of each remaining step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._stream: TrainBatches | None = None
        self._moved = False
        self._begun = False

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield batches; none if a callback has asked to stop, and after ``move`` from the trainer's new state."""
        trainer = self.trainer
        while not trainer.control.stop:
            self._moved = False
            self._stream = trainer.corpus.train_batches(
                trainer.state.data,
                trainer.state.samples,
                min(trainer.state.stop_at, last_step(trainer.state, trainer.settings)) - trainer.state.step,
                trainer.mesh.data_rank,
                trainer.mesh.data_size,
            )
            for batch in self._stream:
                self._say_when_it_began()
                yield batch
                if self._moved:
                    break
            if not self._moved:
                return

    def move(self) -> None:
        """Restart after this batch from the position in the trainer's state (after a rollback)."""
        self._moved = True

    def position(self) -> dict[str, Any]:
        """Position of a streaming source after the batches handed out so far; empty for indexed data."""
        return self.trainer.state.data if self._stream is None else self._stream.state()

    def close(self) -> None:
        """Release the batches, which ends the worker processes of the data: a remaining worker would keep this process
        from ending."""
        if self._stream is not None:
            self._stream.close()

    def _say_when_it_began(self) -> None:
        if not self._begun:
            self._begun = True
            started = psutil.Process().create_time()
            log.info("first step begins %.1f s after the process started", time.time() - started)
