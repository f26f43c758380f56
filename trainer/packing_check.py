"""Test that the model keeps packed texts apart: texts in one row must not affect each other's logits.

The test is run for models whose family file does not promise it. Two documents of random tokens are put into two rows,
in either order. A model that keeps documents apart gives each document the same logits in both rows, whatever the other
document and the position in the row. The model is tested with the attention kernel and the precision of this run, so
the result holds for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import Problem, UserError
from ..models.check_packing import FIX, KEY
from ..models.facts import Facts
from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import Strategy

LENGTH = 16
"""Tokens of each of the two documents: a multiple of any number of tensor ranks that a small model has."""
EXACT, ROUGH = 1e-5, 1e-3
"""Largest difference of logits that rounding makes, in units of their spread, in fp32 and in 16 bits. Both rows are
computed in the same way, so there is no difference where documents are kept apart. Of the architectures that were seen
to mix them, Jamba has the smallest difference, 6e-4 in fp32; in 16 bits it is larger, since roundings differ."""


def refuse_leaks(strategy: Strategy, facts: Facts, packing: Any) -> None:
    """Refuse a model in which documents see each other; a collective call.

    Raises:
        UserError: they do.
    """
    micro = two_orders(facts.vocabulary.size if facts.vocabulary else 2, LENGTH)
    strategy.set_training(False)
    try:
        sums = strategy.evaluate([micro], differences)
    except TypeError as error:  # of the call, on every rank
        if "position_ids" not in str(error):
            raise
        why = f"needs positions that restart, and forward of {strategy.family.title} takes no position_ids"
        raise UserError(Problem(KEY, why, FIX, packing)) from error
    strategy.set_training(True)
    difference = (float(sums["difference"]) / max(float(sums["spread"]), 1e-30)) ** 0.5
    if not difference <= (EXACT if strategy.plan.precision == "fp32" else ROUGH):
        title = strategy.family.title
        why = f"is wrong for {title}: of two documents in one row, each changes the other's logits ({difference:.1%})"
        raise UserError(Problem(KEY, why, FIX, packing))


def two_orders(vocabulary: int, length: int) -> MicroBatch:
    """Two rows of the same two documents of random tokens, in either order."""
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, vocabulary, (2, length), generator=draw)
    ids = torch.stack([torch.cat([first, second]), torch.cat([second, first])])
    positions = torch.arange(length).repeat(2, 2)
    documents = torch.tensor([[0, 1], [2, 3]]).repeat_interleave(length, 1)
    inputs = {"input_ids": ids, "position_ids": positions}
    return MicroBatch(inputs, {}, torch.tensor([0, 1]), 4 * length, documents)


def differences(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
    """Sums of squares: of the differences between both rows, and of the logits around their mean."""
    from torch.distributed.tensor import DTensor

    logits = outputs.logits
    logits = (logits.full_tensor() if isinstance(logits, DTensor) else logits).double()
    length = micro.inputs["input_ids"].shape[1] // 2
    turned = torch.cat([logits[1, length:], logits[1, :length]])
    return {"difference": (logits[0] - turned).square().sum(), "spread": (logits[0] - logits[0].mean()).square().sum()}
