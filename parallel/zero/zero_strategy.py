"""The training strategy for DeepSpeed ZeRO: stages 0 to 3, optionally with offload to CPU memory or disk.

DeepSpeed reduces and clips gradients, scales the loss and runs the optimizer. trireme divides the loss by the number of
label tokens in the global batch, and tells the engine which micro-batch is the last. It also sets the learning rate by
the recipe's schedule, unless the JSON has a scheduler of DeepSpeed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.attach_noise import add_noise
from ...models.build_model import WeightSource
from ...models.family import ModelFamily
from ...models.find_blocks import blocks_of
from ..apply import materialise
from ..checkpoint_state import owners, state_shapes
from ..generate_in_step import generate_in_step
from ..group_values import GroupValues
from ..mesh import Mesh
from ..micro_batch import MicroBatch, StepBatch
from ..micro_batch_noise import noise_of
from ..plan import Plan
from ..precision import DTYPES, autocast, cast_inputs, set_backend
from ..strategy import (
    CopyTensor,
    LossFunction,
    OptimizerFactory,
    Read,
    Shapes,
    StepLoss,
    StepResult,
    Strategy,
    no_copy,
)
from ..tensor_rows import rows_of
from .deepspeed_engine import LossScaleState, build_engine, end_engine, gradient_norm, set_masters
from .full_tensors import EngineState, numel, shape_of
from .gradient_watch import GradientWatch
from .json_fill import zero_block
from .library import ensure_process_group, import_deepspeed, quiet
from .load_parts import load_parameters
from .native_checkpoint import save_native
from .operators import load_operators
from .row_pieces import Piece, Range, whole_rows
from .zero3_placement import numbers_to_vectors, place_shards


class DeepSpeedStrategy(Strategy):
    """One DeepSpeed engine over all ranks."""

    def __init__(self, plan: Plan, mesh: Mesh, family: ModelFamily, config: dict[str, Any]) -> None:
        """
        Args:
            config: the JSON of ``deepspeed_config``; kept in the run folder as ``deepspeed.json``.
        """
        super().__init__(plan, mesh, family)
        self.config = config
        self.stage = int(zero_block(config).get("stage", 0))
        self.dtype = DTYPES[plan.precision]
        self.engine: Any = None
        self.trains = False

    # -- placing ----------------------------------------------------------------------------------------------

    def place(self, model: PreTrainedModel, weights: WeightSource) -> None:
        set_backend(self.plan)
        deepspeed = import_deepspeed()
        ensure_process_group(self.mesh.device)
        load_operators(self.config)
        with quiet():
            deepspeed.init_distributed(dist_init_required=False, verbose=False)
        if self.noise is not None:
            add_noise(model, self.family, self.noise)
        if self.plan.recompute != "none":
            from ..recompute import recompute

            recompute(blocks_of(model, self.family), self.plan.recompute, self.noise)
        if self.head is not None:
            self.head.attach(model, self.family)
        self._module = model
        self._numbers = numbers_to_vectors(model)
        if self.dtype != torch.float32:
            cast_inputs(model, self.dtype)
        if self.stage == 3:
            self._masters = place_shards(model, weights, self.config, self.mesh.device, self.dtype)
            return
        # DeepSpeed makes the optimizer's fp32 weights from parameters that it has rounded to the compute type, so the
        # unrounded ones are kept for ``set_masters``.
        rounded = self.dtype != torch.float32
        materialise(model, torch.device("cpu") if rounded else self.mesh.device, weights)
        trainable = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self._masters = {name: p.data for name, p in trainable} if rounded else {}

    def attach_optimizer(self, factory: OptimizerFactory) -> None:
        if self.engine is not None:
            raise RuntimeError("attach the optimizer before the first evaluation, which builds DeepSpeed's engine")
        self.engine = build_engine(self._module, self.config, factory)
        self.trains = True
        self.state = EngineState(self.engine)
        self._group_values = GroupValues(self.state.base, elsewhere=("step",))
        self.loss_scale = LossScaleState(self.engine)
        self._reached = GradientWatch(self._module)
        set_masters(self.state, dict(self._module.named_parameters()), self._masters)
        self._masters = {}

    def close(self) -> None:
        super().close()
        if self.engine is not None:
            end_engine(self.engine)  # else its hooks on gradients hold the engine, the model and the optimizer

    @property
    def module(self) -> PreTrainedModel:
        return self._module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimizer inside DeepSpeed's."""
        return self.state.base

    def set_training(self, mode: bool) -> None:
        self._module.train(mode)

    def local_weights(self) -> Iterator[Tensor]:
        """This rank's weights. In stage 3 they are its shards, without those that are swapped to disk."""
        for _, parameter in self.named_parameters():
            part = getattr(parameter, "ds_tensor", None)
            if part is None:
                yield parameter.detach()
            elif getattr(part, "status", None) is None or part.status.name == "AVAILABLE":
                yield part.detach()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._module.named_parameters()

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

    def without_gradient(self) -> set[str]:
        return self._reached.missing()

    def outputs(self, micro: MicroBatch) -> Any:
        return self.engine(**micro.inputs)

    def backward(self, micro: MicroBatch, loss: LossFunction, labels: Callable[[], int], last: bool) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        value = self.loss_of(self.engine, micro, loss)
        # DeepSpeed averages gradients over ranks; the loss is divided by the labels of all ranks.
        weight = self.mesh.data_size / max(labels(), 1) * self.loss_scale.missing
        self.engine.backward(value * weight, scale_wrt_gas=False)
        return value.detach()

    def optimizer_step(self, max_norm: float | None, lr_scale: float) -> StepResult:
        """Step; DeepSpeed clips by ``gradient_clipping`` of the JSON, which is checked to equal ``max_norm``."""
        groups = self.state.base.param_groups
        if self.engine.lr_scheduler is None:
            # Under partial offload (``ratio``) the backup optimizer steps the parameters that stay on the device.
            backup = getattr(self.engine.optimizer, "backup_optimizer", None)
            for group in [*groups, *(backup.param_groups if backup is not None else ())]:
                group["lr"] = group.get("initial_lr", groups[0]["initial_lr"]) * lr_scale
        lr, scale = groups[0]["lr"], self.loss_scale.missing
        norm = gradient_norm(self.engine) if self.stage == 0 and self.dtype == torch.float32 else None
        if self.skip_nonfinite:
            self._drop_nonfinite(norm)
        self.engine.step()
        if norm is None:
            norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32) / scale
        return StepResult(norm, lr, skipped=not self.engine.was_step_applied())

    def _drop_nonfinite(self, norm: Tensor | None) -> None:
        """Make the engine skip a step whose gradient is not finite.

        Stage 3, and every engine in fp16, skip such steps anyway. Stages 1 and 2 in bf16 do so after
        ``check_grad_overflow`` is set. Stage 0 in fp32 never does, so its gradients are dropped, and the engine is told
        that this is not the last micro-batch.
        """
        if hasattr(self.engine.optimizer, "check_grad_overflow"):
            self.engine.optimizer.check_grad_overflow = True
        if norm is not None and not bool(norm.isfinite()):
            for parameter in self._module.parameters():
                parameter.grad = None
            self.engine.set_gradient_accumulation_boundary(False)

    @property
    def in_step(self) -> bool:
        return self.stage == 3 and self.mesh.data_size > 1

    def generate(self, **arguments: Any) -> Tensor:
        """Tokens by transformers' ``generate``; under stage 3 all ranks call it."""
        self.inference_model()
        with self.inference_context(), torch.no_grad():
            if not self.in_step:
                return self._module.generate(**arguments)  # type: ignore[operator]
            tokens = generate_in_step(self.mesh, self._module, arguments)
        self.free_gathered()
        return tokens

    def inference_model(self) -> nn.Module:
        """The module that a forward pass calls. Stage 3 without optimizer gets an engine that only gathers (ZeRO
        inference)."""
        if self.engine is None and self.stage == 3:
            self.engine = build_engine(self._module, self.config, None)
        elif self.engine is None:
            nn.Module.to(self._module, self.mesh.device)  # without fp32, only the engine would move it there
        return self._module if self.engine is None else self.engine

    def inference_context(self) -> AbstractContextManager:
        """The context of a forward pass: autocast before the engine is built (stages 0 to 2), since parameters are
        fp32 then. Later they have the compute type."""
        return autocast(self.plan, self.mesh.device) if self.engine is None else nullcontext()

    def free_gathered(self) -> None:
        """Free the parameters that stage 3 has gathered."""
        if self.stage == 3:
            self.engine.empty_partition_cache()

    # -- state ------------------------------------------------------------------------------------------------

    def saved_tensors(self, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
        """Rows (``Rows``) of tensors that are split over ranks, and other tensors as a whole, each on one rank."""
        parameters = dict(self.saved_parameters())
        owner = owners({name: numel(p) for name, p in parameters.items()}, self.mesh.data_size)
        tensors: dict[str, Tensor] = {}
        pieces: list[Piece] = []
        numbers: set[str] = set()
        for name, parameter in parameters.items():
            kept = owner[name] == self.mesh.data_rank
            keys = self.state.moments(parameter)
            if self.state.is_split(parameter):
                parts = {f"model.{name}": None, **{f"optim.{name}.{key}": key for key in keys}}
                ranges, shape = self._ranges[name], shape_of(parameter)
                numbers |= parts.keys() if name in self._numbers else set()
                pieces += [Piece(n, shape, ranges, self.state.part(parameter, key)) for n, key in parts.items()]
            else:
                shape = self._shape(name, parameter)
                _keep(tensors, kept, f"model.{name}", self.state.weight(parameter).view(shape))
                for key in keys:
                    _keep(tensors, kept, f"optim.{name}.{key}", self.state.moment(parameter, key).view(shape))
            for key, number in self.state.counters(parameter):
                _keep(tensors, kept, f"optim.{name}.{key}", number)
        for piece, first, values, live in whole_rows(pieces, self.mesh.rank, self.mesh.device):
            values = copy(piece.name, values) if live and not self.state.swaps else values.cpu()
            tensors[piece.name] = values.view([]) if piece.name in numbers else rows_of(values, first, piece.shape)
        for name, buffer in self._buffers():
            _keep(tensors, self.mesh.data_rank == 0, f"model.{name}", buffer)
        return tensors

    @cached_property
    def _ranges(self) -> dict[str, list[Range]]:
        """The range of each rank in every split parameter; a collective call."""
        split = {name: p for name, p in self.saved_parameters() if self.state.is_split(p)}
        ranges = self.mesh.gather_objects({name: self.state.held(p) for name, p in split.items()})
        return {name: [each[name] for each in ranges] for name in split}

    def load(self, read: Read, shapes: Shapes, scalars: dict[str, Any]) -> None:
        saved = state_shapes(shapes)
        parameters = dict(self.saved_parameters())
        if any(saved.get(name) for name in parameters) and not self.state.exists:
            self.state.create()
        load_parameters(self.state, parameters, self._numbers, saved, read)
        buffers = {f"model.{name}": buffer.cpu() for name, buffer in self._buffers()}
        if buffers:
            read(buffers)
        for name, buffer in self._buffers():
            buffer.copy_(buffers[f"model.{name}"])
        if "loss_scale" in scalars:
            self.loss_scale.load_state_dict(scalars["loss_scale"])
        if self.engine.lr_scheduler is not None and "scheduler" in scalars:
            self.engine.lr_scheduler.load_state_dict(scalars["scheduler"]["state"])
            for group, lr in zip(self.state.base.param_groups, scalars["scheduler"]["lr"], strict=True):
                group["lr"] = lr
        self._group_values.load(scalars.get("groups", []))
        self.free_gathered()

    def save_native(self, folder: Path, step: int, samples: int) -> None:
        save_native(self.engine, folder, step, samples)
        self.free_gathered()

    def run_files(self) -> dict[str, str]:
        return {"deepspeed.json": json.dumps(self.config, indent=2) + "\n"}

    def scalars(self) -> dict[str, Any]:
        state: dict[str, Any] = {"loss_scale": self.loss_scale.state_dict(), "optimizer": {}}
        if self.engine.lr_scheduler is not None:
            rates = [group["lr"] for group in self.state.base.param_groups]
            state["scheduler"] = {"state": copy.deepcopy(self.engine.lr_scheduler.state_dict()), "lr": rates}
        groups = self._group_values.changed()
        return state | ({"groups": groups} if groups else {})

    def _shape(self, name: str, parameter: nn.Parameter) -> torch.Size:
        """Shape of a whole parameter in checkpoints."""
        return torch.Size([]) if name in self._numbers else shape_of(parameter)

    def _buffers(self) -> list[tuple[str, Tensor]]:
        """Buffers that checkpoints hold; none beside a base, which has them."""
        if self.saved_names is not None:
            return []
        persistent = self._module.state_dict()
        return [(name, buffer) for name, buffer in self._module.named_buffers() if name in persistent]


def _keep(tensors: dict[str, Tensor], kept: bool, name: str, value: Tensor) -> None:
    if kept:
        tensors[name] = value.detach().to("cpu", copy=True)
