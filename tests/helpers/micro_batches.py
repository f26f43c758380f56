"""Test helpers that make the arguments of a training step from plain tensors: micro-batches with shifted labels, a
rank's batch for one step, and a task's loss as the function that strategies call. Labels can also be shifted back, to
compare with other libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from trireme.models.loss import IGNORE, next_token_labels
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.trainer.tasks.task import Task


def of_tokens(input_ids: Tensor, labels: Tensor | None = None, **inputs: Tensor) -> MicroBatch:
    """A micro-batch of the given tokens.

    Args:
        labels: labels at the positions of their tokens; None takes the tokens themselves.
        inputs: further inputs of the model.
    """
    shifted = next_token_labels(input_ids if labels is None else labels)
    mask = inputs.get("attention_mask", torch.ones_like(input_ids))
    samples = torch.arange(len(input_ids))
    return MicroBatch({"input_ids": input_ids, **inputs}, {"labels": shifted}, samples, int(mask.sum()))


def labels_of(micros: list[MicroBatch]) -> int:
    """Number of labels."""
    return sum(int((micro.targets["labels"] != IGNORE).sum()) for micro in micros)


def step_of(micros: list[MicroBatch]) -> StepBatch:
    """A data rank's share of a step; every position of the inputs counts as a token."""
    return StepBatch(micros, labels_of(micros), sum(micro.inputs["input_ids"].numel() for micro in micros), [])


def loss_of(task: Task) -> Callable[[Any, MicroBatch], Tensor]:
    """``task.loss`` as strategies call it."""
    return lambda outputs, micro: task.loss(outputs, micro.targets)


def beside_tokens(labels: Tensor) -> Tensor:
    """Labels [..., length] of a micro-batch, shifted back to the positions of their tokens, as other libraries expect;
    the first token has no label."""
    return F.pad(labels[..., :-1], (1, 0), value=IGNORE)
