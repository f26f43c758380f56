"""At the end of a run, load the weights of its best checkpoint (``checkpoint.load_best``).

The last checkpoint keeps the weights of the last step, so that a longer run can resume from it. The best weights are
used for the export, the push, and the samples and predictions at the end; they are the model that a notebook gets, and
the one that ``trireme evaluate`` and ``trireme predict`` take later.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint.layout import metric_of, step_of
from .checkpoint.load.open_source import open_source
from .checkpoint.retention import best_checkpoint
from .resume import load_weights

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")


def load_best(trainer: Trainer) -> None:
    """Take the weights of the best checkpoint, and its metrics as those of the run; a collective call."""
    trainer.saving.end()
    config, root = trainer.checkpoints, trainer.store.root

    def best() -> list[Path]:
        found = best_checkpoint(root, config)
        return [] if found is None else [found]

    path = trainer.store.newest_of(best)
    if path is None:
        if trainer.mesh.is_main:
            log.warning("no checkpoint has %s, so the run ends with its last weights", config.metric)
        return
    step, trainer.ended_with = step_of(path), path
    if step != trainer.saving.saved_at or step != trainer.state.step:
        load_weights(trainer, open_source(path))
    metrics = next((line for line in reversed(trainer.history.lines) if _evaluates(line, step)), {})
    metric = metric_of(path)
    trainer.metrics |= {key: value for key, value in metrics.items() if key.startswith("eval_")}
    trainer.metrics |= {} if metric is None else {config.metric: metric}
    log.info("the run ends with the weights of step %d, the best by %s (%.6g): %s", step, config.metric, metric, path)


def _evaluates(line: dict[str, object], step: int) -> bool:
    return line.get("step") == step and any(key.startswith("eval_") for key in line)
