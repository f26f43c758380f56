"""Load weights into a quantised model: a weight of a quantised layer is quantised as soon as it is read from a file or
initialised, unless its file holds it quantised already.

The result depends only on the weight, so all ranks get the same quantised tensors, whichever shards they hold.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...errors import Problem, UserError
from ..weight_files import Stored
from .quantised_layer import WEIGHT, oriented, quantised_layers, whole

if TYPE_CHECKING:
    from ..build_model import WeightSource


def with_packed(base: WeightSource, model: nn.Module, stored: Mapping[str, Stored]) -> WeightSource:
    """The weights of ``base``, with the quantised tensors in place of each weight of a quantised layer.

    Args:
        base: gives weights that are not quantised, by their usual names.
        model: on the meta device, quantised.
        stored: weights that are quantised in their file already, by their usual names.
    """
    layers = dict(quantised_layers(model))

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        wanted: dict[str, dict[str, str]] = {}
        for name in names:
            path, _, part = name.rpartition(".")
            if path in layers and part in layers[path].layout:
                wanted.setdefault(f"{path}.{WEIGHT}", {})[part] = name
        taken = {name for parts in wanted.values() for name in parts.values()}
        for name in [name for name in wanted if name in stored]:
            parts = stored_parts(layers[name.rpartition(".")[0]], name, stored[name])
            yield from ((own, parts[part]) for part, own in wanted.pop(name).items())
        for name, tensor in base({*(set(names) - taken), *wanted}):
            if name not in wanted:
                yield name, tensor
                continue
            parts = packed(layers[name.rpartition(".")[0]], tensor)
            yield from ((own, parts[part]) for part, own in wanted[name].items())

    return weights


def as_quantised(base: WeightSource, model: nn.Module) -> WeightSource:
    """The weights of ``base``, those of quantised layers quantised and dequantised again, in fp32."""
    layers = dict(quantised_layers(model))

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in base(names):
            path, _, own = name.rpartition(".")
            if own == WEIGHT and path in layers:
                layer = layers[path]
                tensor = oriented(layer, whole(layer, packed(layer, tensor), torch.float32)).contiguous()
            yield name, tensor

    return weights


def stored_parts(layer: nn.Module, name: str, entry: Stored) -> dict[str, Tensor]:
    """The quantised tensors of a weight, as its file holds them.

    Raises:
        UserError: a part has another shape than the sizes of the layer ask for, or a file is damaged.
    """
    assert entry.packed is not None
    try:
        parts = entry.packed()
    except ValueError as error:
        why, _, fix = str(error).partition("; ")
        raise UserError(Problem("model.weights", f"cannot be used: {why}", fix or "fetch the folder again")) from None
    for part, (shape, dtype) in layer.form.parts(*layer.sizes).items():  # type: ignore[union-attr, operator]
        if tuple(parts[part].shape) != shape or parts[part].dtype != dtype:
            why = f"hold {name} with {part} of {tuple(parts[part].shape)}, but the layer needs {shape}"
            raise UserError(Problem("model.weights", why, "fetch the folder again", str(entry.file.parent)))
    return parts


def packed(layer: nn.Module, weight: Tensor) -> dict[str, Tensor]:
    """Quantise a weight, which has the orientation of the layer's class; returns the quantised tensors by name."""
    return layer.form.pack(oriented(layer, weight).float().contiguous())  # type: ignore[union-attr, operator]
