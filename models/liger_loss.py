"""Cross-entropy of a linear layer over a large vocabulary by Liger's GPU kernels (https://arxiv.org/abs/2410.10989).

This is the GPU alternative to ``linear_loss.py``. Like the code there, Liger computes gradients in the forward pass,
and supports label smoothing, z-loss and a soft cap. It does not scale logits, so a scale is multiplied into the hidden
states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .loss_terms import Terms, Wanted


def fused_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    terms: Terms,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor, Wanted]:
    """Losses, labels, and the gradients of the sum of the losses; see ``linear_loss.token_losses``."""
    from liger_kernel.ops.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports]
        fused_linear_cross_entropy_forward,
    )

    cap = terms.map.cap
    factor = terms.map.scale * (1.0 if cap is None else cap)
    losses, *_, states, matrix, offset = fused_linear_cross_entropy_forward(
        (hidden * factor).to(compute),
        weight.to(compute),
        labels,
        bias=None if bias is None else (bias * factor).to(compute),
        lse_square_scale=terms.z_loss,
        label_smoothing=terms.smoothing,
        reduction="none",
        softcap=cap,
        accum_dtype=torch.float32,
        token_grad_output=weights,
        compute_gradients=True,
        weight_requires_grad=weight.requires_grad,
    )
    losses = losses.float() if weights is None else losses * weights
    found = Wanted(states.float() * factor, matrix, None if offset is None else offset * factor)
    return losses, labels.clone(), found
