"""Predictions callback: after training, write the model's prediction for each sample of a data set to a file.

The file is in the run folder, and has the same content as the output of ``trireme predict``. An interrupted run writes
none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.data_config import HELD_OUT
from ..prediction_files import SUFFIXES
from .callback import Callback

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


class Predictions(Callback):
    """Calls ``trainer.predict`` after the last step.

    Args:
        file: name of the file in the run folder; it ends in ``.jsonl`` or ``.parquet``.
        of: ``held_out``, a name in ``data.eval_sets``, or ``test``.
        limit: samples, from the first on; null takes all.
    """

    def __init__(self, file: str = "predictions.jsonl", of: str = HELD_OUT, limit: int | None = None) -> None:
        if Path(file).suffix not in SUFFIXES or Path(file).name != file:
            raise ValueError(f"file={file!r} is not a name that ends in {' or '.join(SUFFIXES)}; use predictions.jsonl")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} is below 1; give a number of samples, or null for all")
        self.file, self.of, self.limit = file, of, limit

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if not control.interrupted:
            trainer.predict(trainer.run_dir / self.file, self.of, self.limit)
