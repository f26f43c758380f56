"""The types of a batch: ``MicroBatch`` (one forward pass), ``StepBatch`` (one data-parallel rank's share of a step),
and ``Place`` (where a row lies in a long text that is read over several steps).

Inputs and targets are nested dicts, lists and tuples of tensors. ``map_tensors`` applies a function to every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Place(NamedTuple):
    """The position of a row in the lanes into which long texts are cut (``data.packing=lanes``)."""

    lane: int
    """Number of the lane; -1 for a row that only fills up the batch."""
    position: int
    """Position of the sample, as in ``MicroBatch.samples``."""
    follows: int
    """Position of the sample of the lane that it goes on from; -1 where a text begins."""


@dataclass
class MicroBatch:
    """Samples of one forward pass. The first dimension of every tensor counts rows, ``per_sample`` for each sample."""

    inputs: dict[str, Any]
    """Inputs of the model, by keyword."""
    targets: dict[str, Any]
    """Labels, and whatever else the task's loss and metrics compare the outputs with."""
    samples: Tensor
    """Position of each sample in the endless stream of the run (int64); -1 for one that only fills up the batch."""
    length: int
    """Tokens in the inputs (or patches, or frames), padding not counted."""
    documents: Tensor | None = None
    """[rows, length], number of each token's document (int64), other numbers in every pass; -1 for padding. None if
    every row is one sample."""
    per_sample: int = 1
    """Rows that each sample takes, one after the other, such as two of a pair of texts; all of them have its position
    in ``samples``."""
    draws: Tensor | None = None
    """[rows], number by which the noise of each row is drawn (int64), where rows of one sample have noise of their own;
    None takes ``samples``."""
    lanes: tuple[Place, ...] | None = None
    """Place of each row in the lanes of a text; None where samples do not go on from each other."""
    beside: MicroBatch | None = None
    """Further texts of the same samples, which the model reads without gradient (``trainer/preference_passes.py``)."""

    @property
    def rows(self) -> int:
        """Number of rows: samples x ``per_sample``."""
        return len(self.samples)

    def map(self, function: Callable[[Tensor], Tensor]) -> MicroBatch:
        """The micro-batch with ``function`` applied to every tensor."""
        return replace(
            self,
            inputs=map_tensors(self.inputs, function),
            targets=map_tensors(self.targets, function),
            samples=function(self.samples),
            documents=None if self.documents is None else function(self.documents),
            draws=None if self.draws is None else function(self.draws),
            beside=None if self.beside is None else self.beside.map(function),
        )

    def to(self, device: torch.device) -> MicroBatch:
        """The micro-batch on ``device``. A copy from pinned memory runs in the background."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass
class StepBatch:
    """One data rank's share of a global batch."""

    micro_batches: list[MicroBatch]
    labels: int
    """Labels in this share, as the task counts them."""
    tokens: int
    """Input tokens in this share, padding not counted."""
    samples: list[int]
    """Dataset indices of this share, in order."""

    def pin_memory(self) -> StepBatch:
        """Copy into page-locked memory, so that transfers to a GPU are asynchronous; the data loader calls this."""
        self.micro_batches = [micro.map(lambda tensor: tensor.pin_memory()) for micro in self.micro_batches]
        return self


def map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """``tree`` (dicts, lists, tuples, outputs of transformers) with ``function`` applied to its tensors."""
    import torch  # imported here, since commands that only check a recipe read this file too

    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        items = {key: map_tensors(value, function) for key, value in tree.items()}
        return type(tree)(**items) if is_dataclass(tree) else items  # outputs of transformers are dataclasses too
    if isinstance(tree, tuple) and type(tree) is not tuple:  # a named tuple is made by position
        return type(tree)(*(map_tensors(value, function) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree
