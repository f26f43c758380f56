"""Test that a model for next-token prediction is causal: its logits must not depend on later tokens.

The test is run for models whose family file does not say that they are decoders. Two rows begin with the same random
tokens and end with different ones. A causal model gives the common tokens the same logits in both rows. An encoder does
not: it could read each label from its input, so its loss would fall without anything being learned.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..models.check_head import sees_later_tokens
from ..models.facts import Facts
from ..models.heads import HEADS
from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import Strategy
from .packing_check import EXACT, ROUGH

log = logging.getLogger("trireme.trainer")
LENGTH = 16
"""Tokens that both rows have in common, and tokens in which they differ."""


def refuse_encoder(strategy: Strategy, facts: Facts, head: str, own: bool) -> None:
    """Refuse a model that sees the tokens which it is to predict; a collective call.

    Args:
        own: the model is the user's own, which may mean to see some of them; then this is a warning.

    Raises:
        UserError: it does.
    """
    if head not in HEADS or not HEADS[head].next_tokens or strategy.family.cut is not None:
        return
    micro = two_endings(facts.vocabulary.size if facts.vocabulary else 2, LENGTH)
    strategy.set_training(False)
    sums = strategy.evaluate([micro], differences)
    strategy.set_training(True)
    difference = (float(sums["difference"]) / max(float(sums["spread"]), 1e-30)) ** 0.5
    if not difference <= (EXACT if strategy.plan.precision == "fp32" else ROUGH):
        if not own:
            raise UserError(sees_later_tokens(strategy.family.title))
        if strategy.mesh.is_main:
            log.warning(
                "task: the logits of a token depend on later tokens, so the model sees the label that it must predict"
            )


def two_endings(vocabulary: int, length: int) -> MicroBatch:
    """Two rows of random tokens that begin alike."""
    draw = torch.Generator().manual_seed(0)
    start, first, second = torch.randint(0, vocabulary, (3, length), generator=draw)
    ids = torch.stack([torch.cat([start, first]), torch.cat([start, second])])
    return MicroBatch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {}, torch.tensor([0, 1]), 4 * length)


def differences(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
    """Sums of squares: of the differences between the beginnings, and of their logits around the mean."""
    from torch.distributed.tensor import DTensor

    logits = outputs.logits
    logits = (logits.full_tensor() if isinstance(logits, DTensor) else logits).double()
    first, second = logits[:, : micro.inputs["input_ids"].shape[1] // 2]
    return {"difference": (first - second).square().sum(), "spread": (first - first.mean()).square().sum()}
