"""Weights from files of others, one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from .family import ModelFamily
from .weight_files import stored_tensors


def folder_weights(
    model: PreTrainedModel, path: Path, family: ModelFamily, names: Collection[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of ``model`` by its own names, in fp32, read from the safetensors or ``.bin`` files at ``path``.

    Files saved from the bare model (no head prefix), or under names from before a renaming, are accepted. Tied names
    may be absent.

    Args:
        path: a folder, or one file.
        names: only these are read; that the files hold all others is checked all the same.

    Raises:
        UserError: a tensor is missing, has another shape, or a file is damaged or not safe to load.
    """
    wanted = {name: parameter for name, parameter in model.named_parameters()}
    wanted |= {name: buffer for name, buffer in model.named_buffers() if name in model.state_dict()}
    missing = set(wanted)
    try:
        for stored, entry in stored_tensors(path).items():
            name = _own_name(stored, wanted, model.base_model_prefix, family)
            if name in missing:
                missing.discard(name)
                if names is not None and name not in names:
                    continue
                yield name, _checked(entry.file, stored, entry.read(), wanted[name])
    except ValueError as error:
        raise UserError(
            Problem("model.weights", f"cannot be used: {error}", "fetch or export the file again", str(path))
        ) from None
    if missing:
        listed = ", ".join(sorted(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(
            Problem(
                "model.weights",
                f"lacks {len(missing)} tensors of the model: {listed}",
                "use weights of this family and size, or match model.config to them",
                str(path),
            )
        )


def _own_name(stored: str, wanted: dict[str, Tensor], prefix: str, family: ModelFamily) -> str:
    for old, new in family.stored_names:
        if stored.startswith(f"{old}."):
            stored = new + stored.removeprefix(old)
    for name in (stored, f"{prefix}.{stored}", stored.removeprefix(f"{prefix}.")):
        if name in wanted:
            return name
    return ""


def _checked(file: Path, name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.shape != like.shape:
        raise UserError(
            Problem(
                "model.config",
                f"{name} in {file.name} has shape {tuple(tensor.shape)}, the model wants {tuple(like.shape)}",
                "match model.config to the weights",
            )
        )
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
