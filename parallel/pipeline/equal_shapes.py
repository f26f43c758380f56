"""Prepare the micro-batches of a training step for pipeline stages: pad their texts to one length, and concatenate
their inputs. Lengths must be equal because stages allocate their receive buffers beforehand.

Pipelines run causal language models only, so inputs and labels are tensors with one value per token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.loss import IGNORE
from ..micro_batch import MicroBatch


def pad_alike(micro_batches: list[MicroBatch], pad_token: int = 0) -> list[MicroBatch]:
    """Pad ``micro_batches`` on the right to one length and to the same keys; sums of label losses do not change.

    Padding has no labels. It is masked if any micro-batch has a mask. Without one, none is added: padding comes last
    and attention is causal, and a mask would keep transformers from recognising packed documents by their positions.

    Raises:
        ValueError: the micro-batches differ in the number of samples or in keys other than the mask, or a tensor to be
            padded is not of shape [batch, length].
    """
    rows = {micro.rows for micro in micro_batches}
    if len(rows) > 1:
        raise ValueError(
            f"micro-batches of one step have {sorted(rows)} samples; a pipeline needs equally many in each"
        )
    if any("attention_mask" in micro.inputs for micro in micro_batches):
        micro_batches = [_masked(micro) for micro in micro_batches]
    keys = {frozenset((*micro.inputs, *micro.targets)) for micro in micro_batches}
    if len(keys) > 1:
        raise ValueError(f"micro-batches of one step have different inputs: {[sorted(names) for names in keys]}")
    length = max(micro.inputs["input_ids"].shape[1] for micro in micro_batches)
    return [_padded(micro, length, pad_token) for micro in micro_batches]


def concatenated(micro_batches: list[MicroBatch]) -> dict[str, Tensor]:
    """Model inputs of all micro-batches, one after the other; torch's schedule divides them again into equal parts."""
    return {name: torch.cat([micro.inputs[name] for micro in micro_batches]) for name in micro_batches[0].inputs}


def _masked(micro: MicroBatch) -> MicroBatch:
    if "attention_mask" in micro.inputs:
        return micro
    return replace(micro, inputs={**micro.inputs, "attention_mask": torch.ones_like(micro.inputs["input_ids"])})


def _padded(micro: MicroBatch, length: int, pad_token: int) -> MicroBatch:
    shape = micro.inputs["input_ids"].shape
    if shape[1] == length:
        return micro

    def pad(tensors: dict[str, Any], fill: dict[str, int]) -> dict[str, Tensor]:
        return {name: _pad(name, value, length - shape[1], shape, fill) for name, value in tensors.items()}

    documents = None if micro.documents is None else F.pad(micro.documents, (0, length - shape[1]), value=-1)
    along = {name: value for name, value in micro.targets.items() if tuple(getattr(value, "shape", ())) == tuple(shape)}
    targets = {**micro.targets, **pad(along, {"labels": IGNORE})}  # others are numbers of rows, not of tokens
    return replace(micro, inputs=pad(micro.inputs, {"input_ids": pad_token}), targets=targets, documents=documents)


def _pad(name: str, value: Tensor, missing: int, shape: torch.Size, fill: dict[str, int]) -> Tensor:
    if value.shape != shape:
        raise ValueError(
            f"{name} of {tuple(value.shape)} cannot be padded; give micro-batches of one length (pad_step=true)"
        )
    if name == "position_ids":  # padding counts as a further document, so that positions stay in the model's range
        return torch.cat([value, torch.arange(missing, device=value.device).expand(len(value), missing)], dim=1)
    return F.pad(value, (0, missing), value=fill.get(name, 0))
