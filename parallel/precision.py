"""Set up the compute precision of a parallelism plan: autocast, loss scaling, the types of parameters and inputs, and
torch's global switches.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .micro_batch import map_tensors
from .plan import Plan

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(plan: Plan, device: torch.device, other: str | None = None) -> AbstractContextManager:
    """Run matrix products in the plan's type, or in an ``other`` one; weights and reductions stay fp32.

    FSDP casts parameters and inputs to the plan's type itself, before it gathers them, which halves its traffic.
    """
    precision = other or plan.precision
    if precision == "fp32" or (plan.data_parallel == "fsdp" and precision == plan.precision):
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def round_weights(model: nn.Module, precision: str) -> None:
    """Give the floating-point parameters of a model on the meta device another type, in which they are then loaded.
    Buffers stay as they are: 16 bits are too few for the frequencies of rotary positions."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(DTYPES[precision])
    cast_inputs(model, DTYPES[precision])


def cast_inputs(model: nn.Module, dtype: torch.dtype) -> None:
    """Let ``model`` cast floating-point inputs, such as pixels, to the type of its weights, as FSDP does."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def hook(module: nn.Module, arguments: Any, named: Any) -> Any:
        return map_tensors(arguments, cast), map_tensors(named, cast)

    model.register_forward_pre_hook(hook, with_kwargs=True)


class LossScale:
    """Dynamic loss scale for fp16, whose small gradients underflow (https://arxiv.org/abs/1710.03740).

    The scale halves when the norm of the *global* gradient is not finite. Every rank knows this norm, so all ranks skip
    the same steps under any plan. ``torch.amp.GradScaler`` would look at the gradients of its own rank only.
    """

    GROWTH_INTERVAL = 2000

    def __init__(self, plan: Plan, initial: float = 2.0**16) -> None:
        self.enabled = plan.precision == "fp16"
        self.value = initial if self.enabled else 1.0
        self.good_steps = 0

    def update(self, overflow: bool) -> None:
        """Halve the scale after an overflow, or double it after ``GROWTH_INTERVAL`` steps without one (fp16 only)."""
        if not self.enabled:
            return
        if overflow:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == self.GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.enabled:
            self.value, self.good_steps = state["value"], state["good_steps"]


def set_backend(plan: Plan) -> None:
    """Set torch's process-wide switches; must be called before the first kernel runs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = plan.tf32
    if plan.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic with a fixed workspace only
    torch.use_deterministic_algorithms(plan.deterministic)
