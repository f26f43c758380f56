"""Check the recipe's key ``model.loss`` before any process starts, and tell whether it means chunked losses. The key
says how token losses are computed: from all logits at once, in chunks that never hold all logits, or by Liger's
kernels.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from ..errors import Problem

if TYPE_CHECKING:
    from .model_config import ModelConfig

LARGE = 65_536
"""Vocabulary size from which ``auto`` computes losses in pieces: the logits of a thousand tokens then take 256 MiB."""
PIECE = 2**30
"""Bytes of logits that are held at once on a GPU."""


def in_pieces(choice: str, words: int) -> bool:
    """Whether losses are computed in pieces for a vocabulary of ``words``, if the model and the task allow it."""
    return choice in ("chunked", "liger") or (choice == "auto" and words >= LARGE)


def check_loss(model: ModelConfig, gives_losses: bool, tensor: int, here: bool = True) -> list[Problem]:
    """Problems of the way in which losses are computed, as far as they are known without the model.

    Args:
        gives_losses: whether the task takes losses from the head (``Task.head_gives_losses``).
        tensor: number of tensor ranks.
        here: whether the run starts on this machine.
    """
    if model.loss in ("auto", "plain"):
        return []
    why = "" if gives_losses else "has no effect, since this task computes its loss from logits"
    if not why and model.loss == "liger":
        why = liger_problem(_device() if here else None, tensor)
    return [Problem("model.loss", why, "set model.loss=auto", model.loss)] if why else []


def liger_problem(device: str | None, tensor: int = 1) -> str:
    """Why Liger's kernels cannot run, as a clause; empty if they can.

    Args:
        device: type of the device that a run will have; None if it is not known here.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        return "needs the package liger-kernel, which is not installed (pip install liger-kernel)"
    if device is not None and device != "cuda":
        return "needs a GPU, and there is none here"
    if tensor > 1:
        return "is not possible with a head that tensor ranks split"
    return ""


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
