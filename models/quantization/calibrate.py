"""Quantise a model's layers by GPTQ, block by block, on inputs from a data set.

The inputs of each block are the outputs of the blocks before it, which are already quantised. Later blocks can
therefore compensate for the errors of earlier ones. For each block, the model runs from its beginning up to this block.
This is slower than storing the inputs of each block, but works for every architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..family import ModelFamily
from ..find_blocks import block_lists
from .gptq_rounding import GptqRounding
from .quantised_layer import layer_sizes, oriented


class _Reached(Exception):
    """The block has run, and nothing after it is needed."""


def calibrated(
    model: nn.Module,
    family: ModelFamily,
    layers: Sequence[str],
    inputs: Sequence[Mapping[str, Any]],
    search: GptqRounding,
    said: Callable[[str], None] = lambda line: None,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(path, parts) of each layer; the weights of ``model`` become the rounded ones.

    Args:
        model: with its weights, in evaluation mode.
        layers: paths of the layers.
        inputs: arguments of the model by name, on its device.
        said: takes a line on each block.
    """
    for block, own in _by_block(model, family, layers):
        moments = _moments(model, block, own, inputs)
        errors = []
        for path in own:
            layer = model.get_submodule(path)
            weight = oriented(layer, layer.get_parameter("weight")).detach().float()
            parts = search.parts(weight, moments[path])
            rounded = search.form.unpack(parts, *layer_sizes(layer), torch.float32).to(weight.device)
            errors.append(output_error(weight, rounded, moments[path]))
            with torch.no_grad():
                layer.get_parameter("weight").copy_(oriented(layer, rounded))
            yield path, parts
        said(
            f"{block or 'other layers'}: outputs are off by {100 * sum(errors) / len(errors):.2f} % (root mean square)"
        )


def output_error(weight: Tensor, rounded: Tensor, moments: Tensor) -> float:
    """Root mean square of the error of a layer's outputs after rounding, as a share of the root mean square of the
    outputs."""
    change = weight - rounded
    squares = [((one @ moments) * one).sum().clamp(min=0) for one in (change, weight)]
    return float((squares[0] / squares[1].clamp(min=1e-30)).sqrt())


def _by_block(model: nn.Module, family: ModelFamily, layers: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """(path of a block, its layers) in the order of the model; layers outside of blocks come last, under no path."""
    blocks = [f"{path}.{name}" for path, stack in block_lists(model, family) for name, _ in stack.named_children()]
    for block in blocks:
        own = [path for path in layers if path.startswith(f"{block}.")]
        if own:
            yield block, own
    rest = [path for path in layers if not any(path.startswith(f"{block}.") for block in blocks)]
    if rest:
        yield "", rest


@torch.no_grad()
def _moments(
    model: nn.Module, block: str, layers: Sequence[str], inputs: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Sum of the outer products of the inputs of each layer [inputs, inputs]; padding does not count."""
    found: dict[str, Tensor] = {}
    mask: list[Tensor | None] = [None]

    def watch(path: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            entered = arguments[0].detach().float()
            if mask[0] is not None and entered.shape[:2] == mask[0].shape:
                entered = entered[mask[0]]
            flat = entered.reshape(-1, entered.shape[-1])
            product = flat.T @ flat
            found[path] = found[path] + product if path in found else product

        return hook

    with ExitStack() as undo:
        for path in layers:
            undo.callback(model.get_submodule(path).register_forward_pre_hook(watch(path)).remove)
        if block:
            undo.callback(model.get_submodule(block).register_forward_hook(_stop).remove)
        for batch in inputs:
            given = batch.get("attention_mask")
            mask[0] = given.bool() if isinstance(given, Tensor) and given.ndim == 2 else None
            try:
                model(**batch)
            except _Reached:
                continue
    return found


def _stop(*_: Any) -> None:
    raise _Reached
