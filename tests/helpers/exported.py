"""Prepare a loaded export, or the trained model itself, so that the logits of both can be compared bit for bit."""

from __future__ import annotations

import torch
from torch import nn


def aligned(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with its weights copied to newly allocated memory.

    Loaded weights lie in a mapped file at any address, and kernels of some processors round differently there.
    """
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.eval()
