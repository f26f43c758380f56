"""Compute precision of a plan: autocast, loss scaling, and the switches of the backend."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from .plan import Plan

COMPUTE_DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(plan: Plan, device: torch.device) -> AbstractContextManager:
    """Run matrix products in the plan's type; weights and reductions stay fp32."""
    if plan.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=COMPUTE_DTYPE[plan.precision])


def loss_scaler(plan: Plan, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scale for fp16, whose gradients underflow; does nothing for the other types."""
    return torch.amp.GradScaler(device.type, enabled=plan.precision == "fp16")


def set_backend(plan: Plan) -> None:
    """Process-wide switches; set before the first kernel runs."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = plan.tf32
    if plan.deterministic:
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # cuBLAS is deterministic with a fixed workspace only
    torch.use_deterministic_algorithms(plan.deterministic)
