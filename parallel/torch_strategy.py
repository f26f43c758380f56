"""The training strategy for one process, DDP, FSDP2, tensor parallelism, and their combinations without a pipeline.

``pipeline/pipeline_strategy.py`` derives from it. So a rank may hold several parts of the model, and copies of
parameters that other stages hold too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from ..models.attach_noise import remove_noise
from ..models.build_model import WeightSource
from ..models.family import ModelFamily
from ..models.find_blocks import heads_of
from ..models.other_families import AUTO
from .apply import materialise, parallelize, replicate
from .checkpoint_state import fill, state_shapes, tensors_to_write
from .clip import clip_factor, global_norm, local, scale_gradients
from .fsdp import gather, gather_once, reshard
from .generate_in_step import generate_in_step
from .group_values import GroupValues
from .mesh import Mesh
from .micro_batch import MicroBatch, StepBatch
from .micro_batch_noise import noise_of
from .plan import Plan
from .precision import LossScale, autocast, set_backend
from .strategy import (
    CopyTensor,
    LossFunction,
    OptimizerFactory,
    Read,
    Shapes,
    StepLoss,
    StepResult,
    Strategy,
    no_copy,
    whole_scalar,
)
from .tensor import sum_partial_gradients


class TorchStrategy(Strategy):
    """Forward and backward per micro-batch, one optimizer step over this rank's parameters."""

    def __init__(self, plan: Plan, mesh: Mesh, family: ModelFamily) -> None:
        super().__init__(plan, mesh, family)
        self.scale = LossScale(plan)
        self.parts: list[PreTrainedModel] = []
        self.roots: list[nn.Module] = []

    # -- placing ----------------------------------------------------------------------------------------------

    def place(self, model: PreTrainedModel, weights: WeightSource) -> None:
        set_backend(self.plan)
        self.parts = self.split(model)
        self.roots = [self.stage_root(part) for part in self.parts]
        device = torch.device("cpu") if self.plan.fsdp.offload else self.mesh.device
        for root, part in zip(self.roots, self.parts, strict=True):
            parallelize(root, part, self.family, self.plan, self.mesh, self.noise)
            materialise(part, device, weights, self.source_names(part))
            if self.head is not None:
                self.head.attach(part, self.family)
        self.after_placing()

    @property
    def modules(self) -> list[nn.Module]:
        return [*self.parts]

    def split(self, model: PreTrainedModel) -> list[PreTrainedModel]:
        """The parts of ``model`` that this rank holds."""
        return [model]

    def stage_root(self, part: PreTrainedModel) -> nn.Module:
        """The module that a forward pass of ``part`` calls."""
        return part

    def source_names(self, part: PreTrainedModel) -> dict[str, str]:
        """Name in the whole model of each tensor that has another name in ``part``."""
        return {}

    def after_placing(self) -> None:
        """Called when the parts hold their weights."""
        if self.plan.data_parallel == "ddp" and self.mesh.data_size > 1:
            unknown = self.family.name == AUTO
            self.roots = [replicate(root, self.plan, self.mesh, unknown) for root in self.roots]

    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        sources = self._sources()  # a copy of another stage's parameter belongs to the same group
        trained = [(sources.get(name, name), p) for name, p in self.named_parameters() if p.requires_grad]
        optimizer = None
        try:
            optimizer = factory(trained)
        except ValueError:  # most optimizers are not made without parameters
            if trained:
                raise
        if self.mesh.any_flags([optimizer is None])[0]:
            why = "gives a rank a part of the model in which nothing is trained (model.adapter.targets, model.frozen)"
            raise UserError(Problem("plan.pipeline", why, "train something in every block, or use fewer stages"))
        assert optimizer is not None
        self.optimizer, self._group_values = optimizer, GroupValues(optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        copies = self.copies()
        self._copied = {id(p) for name, p in self.named_parameters() if name in copies}

    @property
    def module(self) -> PreTrainedModel:
        return self.parts[0]

    def end_noise(self) -> None:
        for part in self.parts:
            remove_noise(part)

    def set_training(self, mode: bool) -> None:
        for root in self.roots:
            root.train(mode)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.parts:
            yield from part.named_parameters()

    # -- one step ---------------------------------------------------------------------------------------------

    def forward_backward(self, batch: StepBatch, loss_function: LossFunction) -> StepLoss:
        counts = self.mesh.begin_sums([batch.labels, batch.tokens])  # summed while the forward pass runs
        total = torch.zeros((), device=self.mesh.device)
        for position, micro in enumerate(batch.micro_batches, start=1):
            micro, last = micro.to(self.mesh.device), position == len(batch.micro_batches)
            with noise_of(self.noise, micro):
                total += self.backward(micro, loss_function, lambda: counts.result()[0], last)
            self.after_micro_batch()
        return StepLoss(total, *counts.result())

    def outputs(self, micro: MicroBatch) -> Any:
        with autocast(self.plan, self.mesh.device):
            return self.roots[0](**micro.inputs)

    def backward(self, micro: MicroBatch, loss: LossFunction, labels: Callable[[], int], last: bool) -> Tensor:
        with self._reduction(last), self.loss_context():
            with autocast(self.plan, self.mesh.device):
                value = whole_scalar(self.loss_of(self.roots[0], micro, loss))
            (value * self.loss_weight(labels())).backward()
        return value.detach()

    def loss_weight(self, labels: int) -> float:
        """Factor by which a sum of label losses is multiplied, so that gradients are those of the global mean loss."""
        # DistributedDataParallel averages gradients over its ranks; all other engines sum them.
        averaged = self.mesh.data_size if self.plan.data_parallel == "ddp" else 1
        return self.scale.value * averaged / max(labels, 1)

    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        self.reduce_gradients()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        counted = [p.grad for p in self.parameters if p.grad is not None and id(p) not in self._copied]
        norm = global_norm(counted, self.mesh) / self.scale.value
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * lr_scale
        # Every rank knows the global norm, so all of them skip the same steps.
        skipped = (self.scale.enabled or self.skip_nonfinite) and not bool(norm.isfinite())
        if not skipped:
            if max_norm is not None or self.scale.enabled:
                factor = clip_factor(norm, max_norm) if max_norm is not None else torch.ones_like(norm)
                scale_gradients(gradients, factor / self.scale.value)
            self.optimizer.step()
        self.scale.update(overflow=skipped)
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, self.optimizer.param_groups[0]["lr"], skipped)

    def reduce_gradients(self) -> None:
        """Sum gradients that are partial sums after the backward pass."""
        if self.mesh.degrees.tensor > 1:
            sum_partial_gradients(self.parameters)
        if self.plan.data_parallel == "fsdp" and self.mesh.data_group is not None:
            for parameter in self.parameters:
                if parameter.ndim == 0 and parameter.grad is not None:  # FSDP leaves single numbers alone
                    dist.all_reduce(parameter.grad, group=self.mesh.data_group)

    def inference_model(self) -> nn.Module:
        return self.parts[0]

    @contextmanager
    def inference_context(self) -> Iterator[None]:
        with autocast(self.plan, self.mesh.device, self.eval_precision), self.loss_context():
            yield

    def free_gathered(self) -> None:
        for root in self.roots:
            reshard(root)

    @property
    def in_step(self) -> bool:
        return self.mesh.degrees.shard > 1 or self.mesh.degrees.tensor > 1 or self.plan.data_parallel == "fsdp"

    def generate(self, **arguments: Any) -> Tensor:
        with ExitStack() as undo:
            if self.mesh.degrees.tensor > 1:
                for _, head in heads_of(self.module, self.family):
                    undo.callback(head.register_forward_hook(_gathered_logits).remove)
            undo.callback(self.free_gathered)
            if self.module.config.is_encoder_decoder:
                gather(self.roots[0])  # the encoder runs alone, outside of the root, which holds its embedding
            if self.in_step:
                return generate_in_step(self.mesh, self.module, arguments)
            return self.module.generate(**arguments)  # type: ignore[operator]

    def loss_context(self) -> AbstractContextManager:
        """The context in which losses are computed: tensor parallelism splits logits over the vocabulary."""
        return loss_parallel() if self.mesh.degrees.tensor > 1 else nullcontext()

    def _reduction(self, last: bool) -> AbstractContextManager:
        """The context of one micro-batch's passes; DDP sends gradients only with the last one of a step."""
        root = self.roots[0]
        if isinstance(root, DistributedDataParallel):
            return nullcontext() if last else root.no_sync()
        gather_once(root, self.plan.fsdp, last)
        return nullcontext()

    # -- state ------------------------------------------------------------------------------------------------

    def saved_tensors(self, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
        copies = self.copies()
        tensors = {f"model.{name}": value for name, value in self._model_state() if name not in copies}
        # Buffers are cloned, because a forward pass changes them; parameters change only in the next optimizer step.
        tensors |= {f"model.{name}": buffer.clone() for name, buffer in self._saved_buffers()}
        for name, key, value in self._optimizer_state():
            if name not in copies and isinstance(value, Tensor):
                tensors[f"optim.{name}.{key}"] = value
        return tensors_to_write(tensors, self.mesh, copy)

    def scalars(self) -> dict[str, Any]:
        counters = {f"{n}.{key}": value for n, key, value in self._optimizer_state() if not isinstance(value, Tensor)}
        groups = self._group_values.changed()
        return {"loss_scale": self.scale.state_dict(), "optimizer": counters} | ({"groups": groups} if groups else {})

    def load(self, read: Read, shapes: Shapes, scalars: dict[str, Any]) -> None:
        copies, sources, available = self.copies(), self._sources(), state_shapes(shapes)
        state: dict[str, dict[str, Any]] = {}
        # Copies are read separately, because a rank may hold both a parameter and its copy, under one name.
        for ours in (lambda name: name not in copies, lambda name: name in copies):
            tensors = {f"model.{sources.get(n, n)}": t for n, t in self._model_state() if ours(n)}
            for name, parameter in self.named_parameters():
                if ours(name) and parameter.requires_grad:
                    source = sources.get(name, name)
                    state[name] = _empty_state(parameter, available.get(source, {}))
                    tensors |= {f"optim.{source}.{key}": tensor for key, tensor in state[name].items()}
            fill(tensors, read)
        for name, entries in state.items():
            prefix = f"{sources.get(name, name)}."
            counters = scalars["optimizer"].items()
            entries.update({key.removeprefix(prefix): value for key, value in counters if key.startswith(prefix)})
        numbers = {name: number for number, name in enumerate(self._optimizer_names())}
        numbered = {numbers[name]: entries for name, entries in state.items() if entries}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        self._group_values.load(scalars.get("groups", []))
        if "loss_scale" in scalars:
            self.scale.load_state_dict(scalars["loss_scale"])

    def checkpoint_name(self, name: str) -> str:
        return self._sources().get(name, name)

    def _sources(self) -> dict[str, str]:
        return {name: source for part in self.parts for name, source in self.source_names(part).items()}

    def _model_state(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and persistent buffers by plain name; tied parameters once."""
        yield from ((name, p.detach()) for name, p in self.saved_parameters())
        yield from self._saved_buffers()

    def _saved_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Persistent buffers by plain name; none beside a base, which has them."""
        for part in self.parts if self.saved_names is None else ():
            persistent = part.state_dict(keep_vars=True)
            yield from ((name, buffer) for name, buffer in part.named_buffers() if name in persistent)

    def _optimizer_names(self) -> list[str]:
        """Parameter names in the order in which ``Optimizer.state_dict`` numbers them."""
        names = {id(p): name for name, p in self.named_parameters()}
        return [names[id(p)] for p in self.parameters]

    def _optimizer_state(self) -> Iterator[tuple[str, str, Any]]:
        for name, parameter in zip(self._optimizer_names(), self.parameters, strict=True):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield name, key, value


def _empty_state(parameter: nn.Parameter, shapes: Shapes) -> dict[str, Tensor]:
    """Empty tensors for the optimizer state of a parameter, sharded like the parameter."""
    state: dict[str, Tensor] = {}
    for key, (shape, dtype) in shapes.items():
        if shape == parameter.shape:
            state[key] = torch.empty_like(parameter.detach(), dtype=dtype)
        else:
            state[key] = torch.empty(shape, dtype=dtype, device=local(parameter).device)
    return state


def _gathered_logits(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    return output.full_tensor() if isinstance(output, DTensor) else output
