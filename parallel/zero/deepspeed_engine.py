"""Build a DeepSpeed engine with its optimizer and fp32 weights, and destroy it at the end. Compute its gradient norm
where DeepSpeed keeps none, and save and load its fp16 loss scale.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..clip import sum_of_squares
from ..strategy import OptimizerFactory
from .full_tensors import EngineState
from .json_fill import offload_device, zero_block
from .library import import_deepspeed, quiet
from .operators import load_operator
from .optimizer_rules import SCHEDULES
from .zero3_placement import full_shapes


def build_engine(model: PreTrainedModel, config: dict[str, Any], factory: OptimizerFactory | None) -> Any:
    """The engine of ``deepspeed.initialize`` with the recipe's optimizer, or the JSON's over the recipe's groups.

    Args:
        factory: None builds an engine that only evaluates (stage 3).
    """
    deepspeed = import_deepspeed()
    config = copy.deepcopy(config)
    if factory is None:
        for block in (config, zero_block(config)):
            for name in ("optimizer", "scheduler", "offload_optimizer"):
                block.pop(name, None)
        with quiet():
            return deepspeed.initialize(model=model, config=config, dist_init_required=False)[0]
    optimizer = _build_optimizer(model, factory)
    arguments: dict[str, Any] = {"optimizer": optimizer}
    if "optimizer" in config:
        _load_kernels(config)
        keys = ("params", "weight_decay")
        arguments = {"model_parameters": [{key: group[key] for key in keys} for group in optimizer.param_groups]}
    elif offload_device(config, "offload_optimizer") != "none" and config["zero_force_ds_cpu_optimizer"]:
        arguments = {"optimizer": on_cpu(optimizer)}
    with quiet():
        engine = deepspeed.initialize(model=model, config=config, dist_init_required=False, **arguments)[0]
        _begin_schedule(engine, config)
    return engine


def end_engine(engine: Any) -> None:
    """Destroy an engine, and clear the references to its model in variables of DeepSpeed's modules (stage 3)."""
    engine.destroy()
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK[:] = [each for each in FWD_MODULE_STACK if each is not engine.module]
    method: Any = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release  # type: ignore
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()  # a cache of calls, whose decorator is wrapped


def _load_kernels(config: dict[str, Any]) -> None:
    """Compile the operators of an optimizer that DeepSpeed builds itself, one rank at a time."""
    kind = str(config["optimizer"].get("type", "")).lower().removesuffix("w")
    where = "CPU" if offload_device(config, "offload_optimizer") != "none" else "Fused"
    builders = {"adam": f"{where}AdamBuilder", "lion": f"{where}LionBuilder", "lamb": "FusedLambBuilder"}
    if kind in builders:
        load_operator(builders[kind])


def on_cpu(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """DeepSpeed's CPU optimizer with the same update rule and parameter groups as ``optimizer``."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.lion import DeepSpeedCPULion

    shared = ("params", "lr", "betas", "eps", "weight_decay", "initial_lr")
    groups = [{key: group[key] for key in shared if key in group} for group in optimizer.param_groups]
    adam = isinstance(optimizer, torch.optim.Adam)
    load_operator("CPUAdamBuilder" if adam else "CPULionBuilder")
    if adam:
        return DeepSpeedCPUAdam(groups, adamw_mode=isinstance(optimizer, torch.optim.AdamW))
    return DeepSpeedCPULion(groups)


def set_masters(state: EngineState, parameters: dict[str, nn.Parameter], masters: dict[str, Tensor]) -> None:
    """Give the optimizer the fp32 weights from before the rounding to the compute type.

    Some of DeepSpeed's optimizers create their state by a step on zero gradients, which decays weights and advances
    step counters. Both are undone here.
    """
    if not masters:
        return
    from deepspeed.utils import safe_set_local_fp32_param

    state.clear_counters()
    for name, value in masters.items():
        parameter = parameters[name]
        if state.stage == 3:
            safe_set_local_fp32_param(parameter, value.to(parameter.device))
        elif state.stage == 0:
            state.load_weight(parameter, value)
        else:
            state.set_weight(parameter, value)


def gradient_norm(engine: Any) -> Tensor:
    """Norm of the reduced gradient in stage 0, where DeepSpeed does not keep it; summed in fp64, as in other stages."""
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return sum_of_squares(gradients, torch.float64).sqrt().float()


class LossScaleState:
    """The dynamic loss scale of fp16, saved in the format that all strategies share."""

    def __init__(self, engine: Any) -> None:
        optimizer = engine.optimizer
        self.enabled = engine.fp16_enabled()
        self._unscaled = hasattr(optimizer, "loss_scale_config")
        self._scaler: Any = optimizer.loss_scale_config if self._unscaled else getattr(optimizer, "loss_scaler", None)

    @property
    def missing(self) -> float:
        """Factor that DeepSpeed leaves out: in stage 0 it divides gradients by the scale without multiplying the loss
        by it. The factor is 1 in other stages."""
        return float(self._scaler.cur_scale) if self.enabled and self._unscaled else 1.0

    def state_dict(self) -> dict[str, Any]:
        if not self.enabled:
            return {"value": 1.0, "good_steps": 0}
        scaler = self._scaler
        good = getattr(scaler, "cur_iter", 0) - getattr(scaler, "last_overflow_iter", -1) - 1
        state = {"value": float(scaler.cur_scale), "good_steps": good}
        if hasattr(scaler, "cur_hysteresis"):
            state["hysteresis"] = scaler.cur_hysteresis
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self._scaler.cur_scale = state["value"]
        # Only the difference of the two matters.
        self._scaler.cur_iter, self._scaler.last_overflow_iter = state["good_steps"], -1
        if "hysteresis" in state and hasattr(self._scaler, "cur_hysteresis"):
            self._scaler.cur_hysteresis = state["hysteresis"]


def _build_optimizer(model: PreTrainedModel, factory: OptimizerFactory) -> torch.optim.Optimizer:
    """The recipe's optimizer; stage 3 gives the factory parameters of full shape, replaced by the real ones after."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not hasattr(named[0][1], "ds_id"):
        return factory(named)
    shapes = list(full_shapes(named))
    optimizer = factory(shapes)
    real = {id(stand_in): p for (_, stand_in), (_, p) in zip(shapes, named, strict=True)}
    for group in optimizer.param_groups:
        group["params"] = [real[id(stand_in)] for stand_in in group["params"]]
    return optimizer


def _begin_schedule(engine: Any, config: dict[str, Any]) -> None:
    """Advance DeepSpeed's warm-up schedulers by one step: they take two at the first rate, and recipes take one."""
    if config.get("scheduler", {}).get("type") in SCHEDULES:
        engine.lr_scheduler.step()
