"""``Strategy``: the one interface between the training loop and a way of spreading a model over processes.

The loop knows only this class: a plan that owns its own micro-batch schedule (a pipeline), its own optimizer step
(DeepSpeed) or plain modules (one process, DDP, FSDP, tensor parallel) each implement it, and the loop has no branch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .mesh import Mesh
from .plan import Plan

if TYPE_CHECKING:  # transformers' models take seconds to import; checking a recipe goes without
    from transformers import PreTrainedModel

    from ..models.build_model import WeightSource

MicroBatch = dict[str, Tensor]
"""What one forward sees: model inputs by keyword, plus ``labels``; first dimension is the sample."""
LossFunction = Callable[[Any, MicroBatch], Tensor]
"""(model outputs, micro-batch) -> scalar *sum* of label losses in fp32."""
SumsFunction = Callable[[Any, MicroBatch], dict[str, Tensor]]
"""(model outputs, micro-batch) -> scalar sums by name."""
OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""(trainable parameters by plain name) -> optimizer with ``initial_lr`` in each group."""
CopyTensor = Callable[[str, Tensor], Tensor]
"""(name in checkpoints, a tensor of the training state) -> what is written of it: itself, or a copy."""
Read = Callable[[dict[str, Tensor]], None]
"""Fill tensors in place from a checkpoint, by their names in it."""
Shapes = dict[str, tuple[torch.Size, torch.dtype]]
"""Global shape and type of the tensors in a checkpoint."""


@dataclass
class StepBatch:
    """One data rank's share of a global batch."""

    micro_batches: list[MicroBatch]
    labels: int
    """Label tokens in this share."""
    tokens: int
    """Input tokens in this share, padding not counted."""
    samples: list[int]
    """Dataset indices of this share, in order."""

    def pin_memory(self) -> StepBatch:
        """Called by the data loader when it pins; keeps transfers to a GPU asynchronous."""
        self.micro_batches = [{k: v.pin_memory() for k, v in micro.items()} for micro in self.micro_batches]
        return self


@dataclass
class StepLoss:
    """This rank's part of the loss of one global batch. It is summed over ranks only when a line is logged."""

    total: Tensor
    """This rank's sum of label losses (scalar, on device); zero on pipeline ranks that do not hold the last stage."""
    labels: int
    """Label tokens in the *global* batch."""
    tokens: int
    """Input tokens in the *global* batch."""


@dataclass
class StepResult:
    """What one optimizer step did."""

    grad_norm: Tensor
    """Norm of the global gradient before clipping (scalar), equal on all ranks."""
    lr: float
    """Learning rate of the first parameter group."""
    skipped: bool = False
    """True when the gradient was not finite and weights and moments were left as they were: under a loss scale, with
    ``skip_nonfinite``, and always where DeepSpeed does so by itself (stages 1 to 3)."""


def inputs_of(micro: MicroBatch) -> MicroBatch:
    """What the model takes: labels stay with the loss, which the engine normalises."""
    return {key: value for key, value in micro.items() if key != "labels"}


def whole_scalar(value: Tensor) -> Tensor:
    """The value of a loss; one taken of logits that are split over tensor ranks is a replicated DTensor."""
    from torch.distributed.tensor import DTensor  # a second of importing, which checking a recipe goes without

    return value.full_tensor() if isinstance(value, DTensor) else value


def add_sums(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add one batch's sums to ``totals``, in double precision."""
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + whole_scalar(value).double()


def no_copy(name: str, tensor: Tensor) -> Tensor:
    """Save the tensor itself, which shares memory with the training state."""
    return tensor


def _by_device(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return list(found.values())


class Strategy(ABC):
    """Places a model on a mesh and steps it. One instance serves one run."""

    skip_nonfinite = False
    """Take no step from a gradient whose norm is not finite. On a GPU every step then waits for its norm."""

    def __init__(self, plan: Plan, mesh: Mesh) -> None:
        self.plan = plan
        self.mesh = mesh

    @property
    @abstractmethod
    def module(self) -> PreTrainedModel:
        """The model as its family defines it, without wrappers; under a pipeline, the first of this rank's parts."""

    @abstractmethod
    def place(self, model: PreTrainedModel, weights: WeightSource) -> None:
        """Spread ``model`` (on the meta device) over the mesh and fill it from ``weights``."""

    @abstractmethod
    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        """Build the optimizer over the placed parameters."""

    @abstractmethod
    def set_training(self, mode: bool) -> None:
        """Training mode (dropout) on or off."""

    @abstractmethod
    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        """Gradient of (sum of label losses / label tokens of the global batch), accumulated over micro-batches."""

    @abstractmethod
    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        """Clip by the norm of the global gradient, step with ``initial_lr * lr_scale``, drop the gradients."""

    def to_device(self, micro: MicroBatch) -> MicroBatch:
        """``micro`` on this rank's device; from pinned memory the copy goes on while the caller does."""
        return {key: value.to(self.mesh.device, non_blocking=True) for key, value in micro.items()}

    def global_loss(self, loss: StepLoss) -> float:
        """Mean label loss of the global batch; a collective call, equal on all ranks."""
        return self.mesh.sum_tensor(loss.total.clone()).item() / max(loss.labels, 1)

    def evaluate(self, batches: Iterable[MicroBatch], function: SumsFunction) -> dict[str, float]:
        """Sums of ``function(outputs, micro_batch)`` over all batches and data ranks, without gradient, in the plan's
        precision; a collective call, equal on all ranks. Every data rank gives equally many batches."""
        model = self.inference_model()
        totals: dict[str, Tensor] = {}
        for micro in map(self.to_device, batches):
            with torch.no_grad(), self.inference_context():
                add_sums(totals, function(model(**inputs_of(micro)), micro))
        self.free_gathered()
        return self.shared_sums(totals)

    def shared_sums(self, totals: dict[str, Tensor]) -> dict[str, float]:
        """``totals`` summed over the data ranks and the stages of a pipeline; a collective call."""
        names = sorted(totals)
        if not names:
            return {}
        sums = self.mesh.sum_tensor(torch.stack([totals[name] for name in names]))
        return dict(zip(names, sums.tolist(), strict=True))

    @abstractmethod
    def inference_model(self) -> nn.Module:
        """What a forward without gradient is called on."""

    def inference_context(self) -> AbstractContextManager:
        """What a forward without gradient runs in, for the plan's precision."""
        return nullcontext()

    @abstractmethod
    def free_gathered(self) -> None:
        """Drop whole parameters that a forward has gathered and that this rank still holds."""

    @property
    def in_step(self) -> bool:
        """Whether a forward of the model is a collective call, so that all ranks must generate together."""
        return False

    @property
    def generates(self) -> bool:
        """Whether ``generate`` works under this plan."""
        return True

    def generate(self, **arguments: Any) -> Tensor:
        """Tokens by transformers' ``generate``; all ranks call it with the same arguments if ``in_step``."""
        return self.module.generate(**arguments)  # type: ignore[operator]

    def weights_are_finite(self) -> bool:
        """Whether this rank's part of the weights holds no NaN and no infinity; on a GPU, waits for it once."""
        found = [part.isfinite().all() for part in self.local_weights()]
        return all(bool(torch.stack(parts).all()) for parts in _by_device(found))

    def local_weights(self) -> Iterator[Tensor]:
        """This rank's parts of its parameters, as they are in memory."""
        from .clip import local  # imports DTensor, a second that checking a recipe goes without

        return (local(parameter.detach()) for _, parameter in self.named_parameters())

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters by plain name; tied ones once."""

    # -- state: names are ``model.<name>`` and ``optim.<parameter name>.<state name>`` ------------------------------

    @abstractmethod
    def saved_tensors(self, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
        """What this rank writes into a checkpoint: whole tensors, or DTensors of which it holds a part; a collective
        call.

        Args:
            copy: what is made of a tensor that shares memory with the training state; new ones do not go through it.
        """

    @abstractmethod
    def load(self, read: Read, shapes: Shapes, scalars: dict[str, Any]) -> None:
        """Restore weights and optimizer state; a collective call.

        Args:
            read: fills tensors by checkpoint name; DTensors are filled with this rank's part.
            shapes: of everything in the checkpoint, by checkpoint name.
            scalars: as ``scalars()`` gave them; of others' checkpoints, ``optimizer`` and perhaps ``loss_scale``.
        """

    def save_native(self, folder: Path, step: int, samples: int) -> None:
        """Write the engine's own checkpoint files into ``folder``; a collective call. Only engines that have such.

        Raises:
            OSError: this rank could not write.
        """
        raise NotImplementedError(f"{type(self).__name__} has no checkpoint format of its own")

    def run_files(self) -> dict[str, str]:
        """Name -> text of what the run folder keeps of the engine's own configuration."""
        return {}

    def copies(self) -> set[str]:
        """Parameters of this rank that another stage of a pipeline holds too: counted and saved there."""
        return set()

    def checkpoint_name(self, name: str) -> str:
        """Name in checkpoints of a parameter of this rank: its own, but for ``copies``."""
        return name

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """State that is not a tensor (loss scale, integer optimizer counters), as JSON."""
