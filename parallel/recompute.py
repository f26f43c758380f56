"""Activation checkpointing: recompute activations in the backward pass instead of storing them.

Paper: https://arxiv.org/abs/1604.06174
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..models.noise import Noise

_aten = torch.ops.aten
KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}
"""Operations whose results ``selective`` keeps, because they cost much more to compute than to store."""


def recompute(blocks: Iterable[nn.Module], how: str, noise: Noise | None = None) -> None:
    """Wrap the forward of every block, so that its activations are recomputed.

    Args:
        how: ``full`` keeps a block's input only; ``selective`` keeps matrix products and attention as well.
        noise: source of dropout and other noise, which is the same in both forward passes.
    """
    contexts = {"context_fn": functools.partial(create_selective_checkpoint_contexts, _policy)}
    options = contexts if how == "selective" else {}
    for block in blocks:
        block.forward = _wrapped(block, block.forward, options, noise)


def _wrapped(
    block: nn.Module, forward: Callable[..., Any], options: dict[str, Any], noise: Noise | None
) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (torch.is_grad_enabled() and block.training):  # evaluation and generation have no backward
            return forward(*args, **kwargs)
        twice = forward if noise is None else noise.with_same_noise(forward)
        return checkpoint(twice, *args, use_reentrant=False, **options, **kwargs)

    return run


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
