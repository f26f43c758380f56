"""Weights of a model out of a checkpoint: whole tensors, one bounded group at a time, without a word between ranks."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import Problem, UserError
from ....models.build_model import WeightSource
from ....models.initial_weights import initial_weights
from ....parallel.strategy import Shapes
from ..layout import checkpoints_at, not_finite, sound_first, verify
from ..source import Source
from ..tensors import split_by_bytes
from .open_source import NONE_THERE, open_source

log = logging.getLogger("trireme.checkpoint")
GROUP_BYTES = 256 * 2**20
"""Tensors are read in groups of at most this size."""


def usable_checkpoint(path: Path, field: str, contents: bool = True) -> Path:
    """The newest checkpoint at ``path`` (a checkpoint or run folder) in which every file is what was written; or
    ``path`` itself, if somebody else wrote it. One whose weights were not finite is taken if there is no other.

    Args:
        contents: read every file to know; else trust names and sizes.

    Raises:
        UserError: there is none; ``field`` is what the user gave.
    """
    reason = NONE_THERE
    here = checkpoints_at(path)
    for folder in sound_first(here):
        reason = verify(folder, contents)
        if reason is None:
            for other in here[: here.index(folder)]:
                log.warning("checkpoint %s is passed over: it was saved when %s", other, not_finite(other))
            if found := not_finite(folder):
                log.warning("checkpoint %s was saved when %s", folder, found)
            return folder
        log.warning("checkpoint %s %s; it is not used", folder, reason)
    if path.exists() and not checkpoints_at(path):
        try:
            source = open_source(path)
            source.read_shapes()  # what cannot be read is refused here, by the file's name
            return source.path
        except ValueError as error:
            reason = str(error)
    raise UserError(
        Problem(field, reason, "name a run folder, or a folder such as RUN/checkpoints/step_00000100", str(path))
    )


def stored_weights(source: Source, ema: bool) -> tuple[Shapes, dict[str, str]]:
    """By plain name: shape and type of the model's tensors, and their names in the checkpoint.

    Averaged parameters come with the model's own buffers.

    Raises:
        UserError: ``ema``, and the checkpoint has no averaged weights.
    """
    model = {name.removeprefix("model."): entry for name, entry in source.shapes.items() if name.startswith("model.")}
    averaged = {name.removeprefix("ema.") for name in source.shapes if name.startswith("ema.")} if ema else set()
    if ema and not averaged:
        raise UserError(
            Problem("--ema", "the checkpoint has no averaged weights", "train with `ema=average`, or leave --ema out")
        )
    return model, {name: f"ema.{name}" if name in averaged else f"model.{name}" for name in model}


def read_in_groups(
    source: Source, shapes: Shapes, names: list[str], sources: dict[str, str], limit: int = GROUP_BYTES
) -> Iterator[Tensor]:
    """Whole tensors in the order of ``names``; one group of at most ``limit`` bytes is in memory at a time."""
    sizes = {name: shapes[name][0].numel() * shapes[name][1].itemsize for name in names}
    for group in split_by_bytes(sizes, limit):
        tensors = {sources[name]: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in group}
        source.read(tensors)
        while tensors:  # hand each tensor over and let go of it
            yield tensors.pop(next(iter(tensors)))


def checkpoint_weights(source: Source, model: PreTrainedModel, ema: bool = False) -> WeightSource:
    """The weights of ``model`` as a checkpoint of any plan holds them: a function of the names that are wanted.

    Reading is local, so ranks may ask for different names; all ranks get theirs in the same order, that of the model.

    Args:
        model: on the meta device, and left alone: the source looks at its modules whenever it is asked.
        ema: averaged weights.

    Raises:
        ValueError: a tensor of the model is missing, or has another shape; said at once, before anything is read.
        UserError: no averaged weights.
    """
    source.fit(model)
    shapes, sources = stored_weights(source, ema)
    persistent = _persistent(model)
    for name, tensor in persistent.items():
        if name not in shapes:
            raise ValueError(f"{name} is not in the checkpoint")
        if shapes[name][0] != tensor.shape:
            raise ValueError(
                f"{name} has shape {tuple(shapes[name][0])} in the checkpoint, the model wants {tuple(tensor.shape)}"
            )

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        stored = [name for name in persistent if name in names]
        for name, tensor in zip(stored, read_in_groups(source, shapes, stored, sources), strict=True):
            yield name, tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        # What checkpoints never hold (rotary frequencies and other buffers outside the state dict) is computed.
        yield from initial_weights(model, 0, set(names) - set(stored))

    return weights


def _persistent(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, tied ones once, and the buffers that a state dict holds."""
    kept = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}
