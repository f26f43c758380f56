"""``Strategy``: the interface between the training loop and every form of parallelism.

The training loop uses only this class and never asks which plan is in use. There are three implementations: one for
pipelines, which have their own schedule of micro-batches; one for DeepSpeed, which has its own optimizer step; and one
for everything else (one process, DDP, FSDP, tensor parallelism).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models.attach_noise import remove_noise
from ..models.head_loss import HeadLoss
from ..models.noise import Noise
from .coupled_loss import CoupledTask, feature_gradients, noise_state, restore_noise
from .mesh import Mesh
from .micro_batch import MicroBatch, StepBatch
from .micro_batch_noise import noise_of
from .plan import Plan

if TYPE_CHECKING:  # transformers' models take seconds to import, and checking a recipe does not need them
    from transformers import PreTrainedModel

    from ..models.build_model import WeightSource
    from ..models.family import ModelFamily
    from .lane_states import LaneStates

LossFunction = Callable[[Any, MicroBatch], Tensor]
"""(model outputs, micro-batch) -> scalar *sum* of label losses in fp32."""
SumsFunction = Callable[[Any, MicroBatch], dict[str, Tensor]]
"""(model outputs, micro-batch) -> sums by name, of any shape."""
StepFunction = Callable[[nn.Module, MicroBatch], Any]
"""(the model as a plan calls it, micro-batch on the device) -> a loss as a ``LossFunction`` gives it, or outputs."""
Sums = dict[str, float | Tensor]
"""Sums over all ranks: a number for a scalar, else a tensor in double precision on the CPU."""
OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]
"""(trainable parameters by plain name) -> optimizer with ``initial_lr`` in each group."""
CopyTensor = Callable[[str, Tensor], Tensor]
"""(name in checkpoints, a tensor of the training state) -> the tensor to write: the same one, or a copy."""
Read = Callable[[dict[str, Tensor]], None]
"""Fills tensors in place from a checkpoint, by their names in the checkpoint."""
Shapes = dict[str, tuple[torch.Size, torch.dtype]]
"""Global shape and type of each tensor in a checkpoint."""


@dataclass
class StepLoss:
    """This rank's part of the loss of one global batch. The sum over ranks is taken only when a line is logged."""

    total: Tensor
    """This rank's sum of label losses (scalar, on device); zero on pipeline ranks without the last stage."""
    labels: int
    """Label tokens in the *global* batch."""
    tokens: int
    """Input tokens in the *global* batch."""


@dataclass
class StepResult:
    """The outcome of one optimizer step."""

    grad_norm: Tensor
    """Norm of the global gradient before clipping (scalar), equal on all ranks."""
    lr: float
    """Learning rate of the first parameter group."""
    skipped: bool = False
    """Whether weights and moments were left unchanged because the gradient was not finite. This happens under a loss
    scale, with ``skip_nonfinite``, and always in DeepSpeed's stages 1 to 3."""


def whole_scalar(value: Tensor) -> Tensor:
    """A loss as a plain tensor. Logits that are split over tensor ranks give a loss that is a replicated DTensor."""
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    return value.full_tensor() if isinstance(value, DTensor) else value


def add_sums(totals: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
    """Add one batch's sums to ``totals``, in double precision."""
    for name, value in sums.items():
        totals[name] = totals.get(name, 0) + whole_scalar(value).double()


def no_copy(name: str, tensor: Tensor) -> Tensor:
    """The ``CopyTensor`` that copies nothing: the tensor shares memory with the training state."""
    return tensor


def _by_device(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    found: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        found.setdefault(tensor.device, []).append(tensor)
    return list(found.values())


class Strategy(ABC):
    """Places a model on a mesh and steps it. One instance serves one run."""

    skip_nonfinite = False
    """Skip the step if the norm of the gradient is not finite. On a GPU every step then waits for its norm."""
    eval_precision: str | None = None
    """Precision of forward passes without gradient; None takes that of the plan."""
    saved_names: Collection[str] | None = None
    """Names of the parameters that checkpoints hold, since all others are those of a base; None holds the whole model
    with its buffers."""

    def __init__(self, plan: Plan, mesh: Mesh, family: ModelFamily) -> None:
        self.after_micro_batch: Callable[[], None] = lambda: None
        """Called when the gradient of a micro-batch is accumulated; never under a pipeline or for a coupled loss."""
        self.plan = plan
        self.mesh = mesh
        self.family = family
        self.own_step: StepFunction | None = None
        """How the task computes the loss of a micro-batch in training, if it calls the model itself."""
        self.own_outputs: StepFunction | None = None
        """How the task gets the outputs of a micro-batch in evaluations, if it calls the model itself."""
        self.noise: Noise | None = None
        """Source of the noise of training; None if the model is not trained. Set before ``place``."""
        self.head: HeadLoss | None = None
        """How the head gives losses in place of logits; None if it gives logits. Set before ``place``."""
        self.lanes: LaneStates | None = None
        """Memory that the model carries along the lanes of a text in training; None without ``data.packing=lanes``."""

    @property
    @abstractmethod
    def module(self) -> PreTrainedModel:
        """The model without wrappers; under a pipeline, the first of this rank's stages."""

    @property
    def modules(self) -> list[nn.Module]:
        """The parts of the model on this rank, without wrappers: one, or a pipeline's stages."""
        return [self.module]

    @abstractmethod
    def place(self, model: PreTrainedModel, weights: WeightSource) -> None:
        """Spread ``model`` (on the meta device) over the mesh and fill it from ``weights``."""

    @abstractmethod
    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        """Build the optimizer over the placed parameters."""

    def end_noise(self) -> None:
        """Give the modules back the classes that they had before their noise; training is over."""
        remove_noise(self.module)

    def close(self) -> None:
        """Release everything that keeps the model in memory; the last call, while the process group still exists."""
        self.noise = self.head = self.lanes = None

    @abstractmethod
    def set_training(self, mode: bool) -> None:
        """Switch training mode, and so dropout, on or off."""

    @abstractmethod
    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        """Accumulate the gradient of (sum of label losses / label tokens of the global batch) over micro-batches."""

    def forward_backward_coupled(self, batch: StepBatch, task: CoupledTask) -> StepLoss:
        """Like ``forward_backward``, for a loss that compares the samples of the global batch with each other."""
        counts, device = self.mesh.begin_sums([batch.labels, batch.tokens]), self.mesh.device
        noise, parts = [], []
        micro_batches = [micro.to(device) for micro in batch.micro_batches]
        for micro in micro_batches:
            noise.append(noise_state(device))
            with torch.no_grad(), noise_of(self.noise, micro):
                parts.append(task.features(self.outputs(micro)))
        gradients = feature_gradients(task, parts, micro_batches, self.mesh)
        for number, micro in enumerate(micro_batches):
            restore_noise(noise[number], device)

            def surrogate(outputs: Any, micro: MicroBatch, number: int = number) -> Tensor:
                return gradients.surrogate(number, task.features(outputs))

            with noise_of(self.noise, micro):
                self.backward(micro, surrogate, lambda: counts.result()[0], last=number == len(micro_batches) - 1)
        return StepLoss(gradients.loss, *counts.result())

    def loss_of(self, model: nn.Module, micro: MicroBatch, loss: LossFunction) -> Tensor:
        """Loss of a micro-batch on the device, from the task's own step or from the outputs of one forward pass."""
        if self.own_step is not None:
            return self.own_step(model, micro)
        with self.asking(micro, training=True):
            outputs = self._run(model, micro)
        return loss(outputs, micro)

    def outputs_of(self, model: nn.Module, micro: MicroBatch) -> Any:
        """Outputs of a micro-batch on the device in an evaluation, from the task's own step or one forward pass."""
        if self.own_outputs is not None:
            return self.own_outputs(model, micro)
        with self.asking(micro, training=False):
            return self._run(model, micro)

    def _run(self, model: nn.Module, micro: MicroBatch) -> Any:
        """One forward pass; rows that continue a text (``LaneStates``) start from the state of their lane."""
        if self.lanes is None or micro.lanes is None:
            return model(**micro.inputs)
        return self.lanes.run(model, micro)

    @contextmanager
    def _begun_lanes(self) -> Iterator[None]:
        """The context of an evaluation, whose lanes start without states; the lanes of training go on after it."""
        held = self.lanes
        self.lanes = None if held is None else held.empty()
        try:
            yield
        finally:
            self.lanes = held

    def outputs(self, micro: MicroBatch) -> Any:
        """Outputs of the training model for a micro-batch on the device, in the plan's precision."""
        raise NotImplementedError(f"{type(self).__name__} has no outputs of whole samples")

    def backward(self, micro: MicroBatch, loss: LossFunction, labels: Callable[[], int], last: bool) -> Tensor:
        """Accumulate the gradient of (loss of a micro-batch / label tokens of the global batch); returns the loss.

        Args:
            micro: on the device.
            labels: gives the label tokens of the global batch; called after the forward pass, while the ranks' counts
                are summed.
            last: whether this is the last micro-batch of the step.
        """
        raise NotImplementedError(f"{type(self).__name__} has no outputs of whole samples")

    def asking(self, micro: MicroBatch, training: bool) -> AbstractContextManager:
        """The context of a forward pass in which the head gives the losses that the task asks for."""
        return nullcontext() if self.head is None else self.head.running(self.head.ask(micro.targets, training))

    def without_gradient(self) -> set[str]:
        """Names of the trained parameters of this rank that ``forward_backward`` gave no gradient."""
        return {name for name, one in self.named_parameters() if one.requires_grad and one.grad is None}

    @abstractmethod
    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        """Clip by the norm of the global gradient, step with ``initial_lr * lr_scale``, and free the gradients."""

    def global_loss(self, loss: StepLoss) -> float:
        """Mean label loss of the global batch; a collective call, equal on all ranks."""
        return self.mesh.sum_tensor(loss.total.clone()).item() / max(loss.labels, 1)

    def evaluate(self, batches: Iterable[MicroBatch], function: SumsFunction) -> Sums:
        """Sums of ``function(outputs, micro_batch)`` over all batches and data ranks, without gradient, in the plan's
        precision; a collective call, equal on all ranks. Every data rank must give the same number of batches."""
        model = self.inference_model()
        totals: dict[str, Tensor] = {}
        with self._begun_lanes():
            for micro in batches:
                micro = micro.to(self.mesh.device)
                with torch.no_grad(), self.inference_context():
                    outputs = self.outputs_of(model, micro)
                    add_sums(totals, function(outputs, micro))
        self.free_gathered()
        return self.shared_sums(totals)

    def shared_sums(self, totals: dict[str, Tensor]) -> Sums:
        """``totals`` summed over the data ranks and the stages of a pipeline; a collective call."""
        names = sorted(totals)
        if not names:
            return {}
        flat = [totals[name].flatten().to(self.mesh.device) for name in names]
        sums = self.mesh.sum_tensor(torch.cat(flat)).cpu()
        parts = sums.split([totals[name].numel() for name in names])
        shaped = {name: part.view(totals[name].shape) for name, part in zip(names, parts, strict=True)}
        return {name: part if part.ndim else part.item() for name, part in shaped.items()}

    @abstractmethod
    def inference_model(self) -> nn.Module:
        """The module that a forward pass without gradient calls."""

    def inference_context(self) -> AbstractContextManager:
        """The context of a forward pass without gradient, which sets the plan's precision."""
        return nullcontext()

    @abstractmethod
    def free_gathered(self) -> None:
        """Free the whole parameters that a forward pass has gathered on this rank."""

    @property
    def in_step(self) -> bool:
        """Whether a forward pass is a collective call, so that all ranks must generate together."""
        return False

    @property
    def generates(self) -> bool:
        """Whether ``generate`` works under this plan."""
        return True

    def generate(self, **arguments: Any) -> Tensor:
        """Tokens by transformers' ``generate``; a collective call if ``in_step``, in which the data ranks may have
        different inputs."""
        return self.module.generate(**arguments)  # type: ignore[operator]

    def weights_are_finite(self) -> bool:
        """Whether this rank's part of the weights has no NaN and no infinity. A GPU is waited for only once.

        The weights are summed: a sum with a NaN or an infinity is not finite, and takes a tenth of the time of a look
        at every number.
        """
        parts = [part for part in self.local_weights() if part.is_floating_point()]
        sums = [part.sum(dtype=torch.float32 if part.itemsize < 4 else None).isfinite() for part in parts]
        if all(bool(torch.stack(found).all()) for found in _by_device(sums)):
            return True
        # The sum of large weights may be infinite where none of them is.
        found = [part.isfinite().all() for part in parts]
        return all(bool(torch.stack(each).all()) for each in _by_device(found))

    def local_weights(self) -> Iterator[Tensor]:
        """This rank's shards of its parameters, as they are in memory."""
        from .clip import local  # imported here because it imports DTensor, which takes a second

        return (local(parameter.detach()) for _, parameter in self.named_parameters())

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters by plain name; a tied one comes once."""

    def saved_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters that checkpoints hold, by plain name; a tied one comes once."""
        every, saved = self.named_parameters(), self.saved_names
        return every if saved is None else ((name, one) for name, one in every if self.checkpoint_name(name) in saved)

    # -- state: names are ``model.<name>`` and ``optim.<parameter name>.<state name>`` ------------------------------

    @abstractmethod
    def saved_tensors(self, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
        """Tensors that this rank writes into a checkpoint: whole ones, or DTensors with its shard; a collective call.

        Args:
            copy: applied to every tensor that shares memory with the training state.
        """

    @abstractmethod
    def load(self, read: Read, shapes: Shapes, scalars: dict[str, Any]) -> None:
        """Restore weights and optimizer state; a collective call.

        Args:
            read: fills tensors by checkpoint name; a DTensor is filled with this rank's shard.
            shapes: shapes and types of all tensors in the checkpoint.
            scalars: the result of ``scalars()``; checkpoints of other tools have ``optimizer`` and perhaps
                ``loss_scale``.
        """

    def save_native(self, folder: Path, step: int, samples: int) -> None:
        """Write the checkpoint files of the engine's own format into ``folder``; a collective call.

        Raises:
            NotImplementedError: the engine has no format of its own.
            OSError: this rank could not write.
        """
        raise NotImplementedError(f"{type(self).__name__} has no checkpoint format of its own")

    def run_files(self) -> dict[str, str]:
        """Text files, by name, that keep the engine's configuration in the run folder."""
        return {}

    def copies(self) -> set[str]:
        """Names of this rank's parameters that are copies from another pipeline stage, which counts and saves them."""
        return set()

    def checkpoint_name(self, name: str) -> str:
        """Name in checkpoints of a parameter of this rank; it differs from ``name`` only for ``copies``."""
        return name

    @abstractmethod
    def scalars(self) -> dict[str, Any]:
        """State that is not a tensor (loss scale, integer optimizer counters), as JSON."""
