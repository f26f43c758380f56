"""Tests of the token loss with label smoothing, also for logits whose vocabulary dimension is split over ranks, and of
the choice of the most likely token.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import loss_parallel
from trireme.models.loss import IGNORE, most_likely, token_loss

WORDS = 11
"""Size of the vocabulary, which two ranks cannot share equally."""


def example() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, WORDS, (2, 5))
    labels[0, 1] = labels[1, 4] = IGNORE
    return torch.randn(2, 5, WORDS), labels


def reference(smoothing: float) -> tuple[float, torch.Tensor]:
    logits, labels = example()
    logits.requires_grad_()
    flat = logits.flatten(0, 1)
    loss = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothing_is_that_of_torch(smoothing: float) -> None:
    logits, labels = example()
    logits.requires_grad_()
    loss = token_loss(logits, labels, smoothing)
    loss.backward()
    wanted, gradient = reference(smoothing)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(logits.grad, gradient)


def _split(smoothing: float) -> tuple[float, list]:
    mesh = init_device_mesh("cpu", (2,))
    logits, labels = example()
    parts = distribute_tensor(logits, mesh, [Shard(2)]).requires_grad_()
    with loss_parallel():
        loss = token_loss(parts, labels, smoothing)
        loss.backward()
    assert isinstance(parts.grad, DTensor)
    return loss.item(), parts.grad.full_tensor().tolist()


def test_smoothing_of_logits_that_are_split_over_the_vocabulary() -> None:
    wanted, gradient = reference(0.1)
    for loss, found in run_ranks(_split, 2, 0.1):
        assert loss == pytest.approx(wanted, rel=1e-6)
        torch.testing.assert_close(torch.tensor(found), gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_of_equal_tokens_is_the_most_likely(dtype: torch.dtype) -> None:
    logits = torch.randint(0, 3, (4, 8, 512), generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0, 0, 7] = float("nan")
    assert torch.equal(most_likely(logits), logits.argmax(-1))
    assert most_likely(logits)[0, 0] == 7
