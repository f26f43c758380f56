"""Load a checkpoint into a trainer: weights, optimizer, averaged weights, position in the data, callbacks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..parallel.checkpoint_state import state_shapes
from .checkpoint.source import Progress, Source
from .component_errors import component_errors
from .optimizers import check_state
from .place_model import fitting

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")
OTHER_RUN = "resume with the model and optimizer that wrote it, or start over with --fresh"


def load(trainer: Trainer, source: Source) -> None:
    """Load weights, optimizer, averages, positions and callbacks from a checkpoint of any plan."""
    saved = load_weights(trainer, source)
    for name, value in saved.trainer.items():
        if name not in ("batch", "made_of"):  # these describe batch size and data of the run that saved them
            setattr(trainer.state, name, value)
    if trainer.state.batch != saved.trainer.get("batch"):
        trainer.state.skipped = 0  # it is part of the position since which steps have this size
    for note in saved.notes:
        log.info("%s: %s", source.path.name, note)
    if "samples" not in saved.trainer:
        trainer.state.samples = trainer.state.step * trainer.settings.global_batch_size
        log.info(
            "%s does not tell how many samples were consumed: %d are assumed, %d steps of trainer.global_batch_size",
            source.path.name,
            trainer.state.samples,
            trainer.state.step,
        )
    for name, state in saved.callbacks.items():
        if name in trainer.callbacks:
            with component_errors(f"callbacks.{name}", trainer.callbacks[name], "load_state_dict"):
                trainer.callbacks[name].load_state_dict(state)


def load_weights(trainer: Trainer, source: Source) -> Progress:
    """Load weights, optimizer and averages; returns all else that the checkpoint says, which is not loaded yet."""
    distributed = trainer.mesh.world_size > 1

    def read(tensors: dict[str, Any]) -> None:
        source.read_parts(tensors, distributed)

    with fitting("--resume", source.path, OTHER_RUN):
        saved = source.progress()
        moments = state_shapes(source.shapes)
        check_state(trainer.recipe.optimizer, moments)
        if not moments:
            log.warning("%s holds no state of the optimizer: its moments begin at zero", source.path)
        trainer.strategy.load(read, source.shapes, saved.scalars)
        if trainer.ema and any(name.startswith("ema.") for name in source.shapes):
            trainer.ema.load(read)
        elif trainer.ema:
            log.warning("the checkpoint has no averaged weights: the average begins at its weights")
        lanes = trainer.strategy.lanes
        if lanes is not None and not lanes.load(read, source.shapes):
            log.info("the model's memory begins empty: the checkpoint holds no memory for %d lanes", lanes.lanes)
    return saved
