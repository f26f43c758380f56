"""Find a usable checkpoint at a path, and read a model's weights from it as whole tensors, with bounded memory.

The checkpoint may be of any parallelism plan. The ranks do not communicate, so each may read different tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import Problem, UserError
from ....models.adapters import adapter_names
from ....models.build_model import WeightSource
from ....models.initial_weights import initial_weights
from ....parallel.strategy import Shapes
from ...base_identity import read_base
from ..group_by_bytes import split_by_bytes
from ..layout import checkpoints_at, not_finite, sound_first, verify
from ..source import Source
from .open_source import NONE_THERE, adapter_problem, open_source

log = logging.getLogger("trireme.checkpoint")
GROUP_BYTES = 256 * 2**20
"""Most bytes of a group of tensors that are read at once."""


def usable_checkpoint(path: Path, field: str, contents: bool = True) -> Path:
    """The newest undamaged checkpoint at ``path`` (a checkpoint or run folder); one of another tool is ``path`` itself.

    A checkpoint with weights that were not finite is taken only if there is no other.

    Args:
        field: the key or option that the user wrote.
        contents: read every file to compare digests; else only names and sizes are compared.

    Raises:
        UserError: there is no undamaged checkpoint.
    """
    reason = NONE_THERE
    here = checkpoints_at(path)
    for folder in sound_first(here):
        reason = verify(folder, contents)
        if reason is None:
            for other in here[: here.index(folder)]:
                log.warning("checkpoint %s is skipped, since it was saved with a fault: %s", other, not_finite(other))
            if found := not_finite(folder):
                log.warning("checkpoint %s was saved with a fault: %s", folder, found)
            return folder
        log.warning("checkpoint %s %s; it is not used", folder, reason)
    if path.exists() and not checkpoints_at(path):
        try:
            source = open_source(path)
            source.read_shapes()  # refuses files that cannot be read, and names them
            return source.path
        except ValueError as error:
            if problem := adapter_problem(path, field):
                raise UserError(problem) from None
            reason = str(error)
    raise UserError(
        Problem(field, reason, "name a run folder, or a folder such as RUN/checkpoints/step_00000100", str(path))
    )


def stored_weights(source: Source, ema: bool) -> tuple[Shapes, dict[str, str]]:
    """Shapes and types of the model's tensors, and their names in the checkpoint, both by plain name.

    Args:
        ema: take averaged parameters; buffers are the model's own.

    Raises:
        UserError: ``ema`` is set, and the checkpoint has no averaged weights.
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
        while tensors:  # free each tensor after it was used
            yield tensors.pop(next(iter(tensors)))


def checkpoint_weights(
    source: Source, model: PreTrainedModel, ema: bool = False, base: WeightSource | None = None
) -> WeightSource:
    """The function that yields the requested weights of ``model`` from a checkpoint of any plan.

    Reading needs no communication, so ranks may request different names. All ranks get them in the order of the model.

    Args:
        model: on the meta device; it must not change later, because every call of the function looks at its modules.
        ema: yield averaged weights.
        base: for a model with adapters, gives all that its checkpoints do not hold.

    Raises:
        ValueError: a tensor of the model is missing or has another shape; this is known before any tensor is read.
        UserError: the checkpoint has no averaged weights.
    """
    beside = read_base(source.assets) is not None
    if beside != (base is not None):
        what = ("adapters beside a base", "trains none") if beside else ("a whole model", "trains adapters beside one")
        raise ValueError(f"it holds {what[0]}, and the recipe {what[1]} (model.adapter)")
    source.fit(model)
    shapes, sources = stored_weights(source, ema)
    persistent = _persistent(model)
    if base is not None:
        trained = adapter_names(model)
        persistent = {name: tensor for name, tensor in persistent.items() if name in trained}
    for name, tensor in persistent.items():
        if name not in shapes:
            raise ValueError(f"{name} is not in the checkpoint")
        if shapes[name][0] != tensor.shape:
            raise ValueError(
                f"{name} has shape {tuple(shapes[name][0])} in the checkpoint, the model has {tuple(tensor.shape)}"
            )

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        stored = [name for name in persistent if name in names]
        for name, tensor in zip(stored, read_in_groups(source, shapes, stored, sources), strict=True):
            yield name, tensor.to(torch.float32) if tensor.is_floating_point() else tensor
        left = set(names) - set(stored)
        # Buffers outside the state dict, such as rotary frequencies, are in no checkpoint and are computed.
        yield from initial_weights(model, 0, left) if base is None else base(left)

    return weights


def _persistent(model: PreTrainedModel) -> dict[str, Tensor]:
    """Parameters, with tied ones once, and the buffers of the state dict."""
    kept = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {**dict(model.named_parameters()), **buffers}
