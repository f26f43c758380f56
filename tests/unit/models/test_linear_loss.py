"""The loss and log-probabilities of a linear output layer, computed in chunks, equal those of full logits, with their
gradients. Also tested: ignored tokens, a frozen weight, bf16, fp16, and a vocabulary split over ranks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import run_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from trireme.models import linear_loss
from trireme.models.linear_loss import select, spread, token_log_probabilities, token_losses
from trireme.models.loss_terms import LogitMap, Terms

TOKENS, WIDTH, WORDS = 37, 16, 203
"""Two ranks cannot share the words equally, and tokens cannot be split into equal chunks."""
CAPPED = LogitMap(0.5, 3.0)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "BUFFER", {"cpu": 4 * WORDS * 17})


def example(bias: bool = False) -> dict[str, Tensor | None]:
    torch.manual_seed(0)
    return {
        "hidden": torch.randn(TOKENS, WIDTH, requires_grad=True),
        "weight": torch.randn(WORDS, WIDTH, requires_grad=True),
        "bias": torch.randn(WORDS, requires_grad=True) if bias else None,
        "labels": torch.randint(0, WORDS, (TOKENS,)),
    }


def plain(given: dict[str, Any], terms: Terms) -> Tensor:
    """The same losses, of all logits at once and in double precision."""
    bias = None if given["bias"] is None else given["bias"].double()
    logits = F.linear(given["hidden"].double(), given["weight"].double(), bias) * terms.map.scale
    if terms.map.cap is not None:
        logits = terms.map.cap * logits.tanh()
    losses = F.cross_entropy(logits, given["labels"], reduction="none", label_smoothing=terms.smoothing)
    return losses + terms.z_loss * logits.logsumexp(1).square()


def gradients(loss: Tensor, given: dict[str, Any]) -> list[Tensor]:
    wanted = [each for each in given.values() if each is not None and each.requires_grad]
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    "terms",
    [
        Terms(),
        Terms(LogitMap(0.25)),
        Terms(CAPPED),
        Terms(smoothing=0.1),
        Terms(z_loss=0.01),
        Terms(CAPPED, smoothing=0.2, z_loss=0.01),
    ],
    ids=["plain", "scaled", "capped", "smoothed", "z", "all"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_losses_and_gradients_are_those_of_logits(terms: Terms, bias: bool, at_once: bool) -> None:
    given = example(bias)
    factors = torch.rand(TOKENS)
    losses, _ = token_losses(**given, terms=terms, weights=factors, at_once=at_once)  # type: ignore[arg-type]
    wanted = plain(given, terms) * factors
    torch.testing.assert_close(losses.double(), wanted, rtol=1e-6, atol=1e-5)
    found, expected = gradients(losses.sum() * 0.3, given), gradients(wanted.sum() * 0.3, given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_losses_that_get_different_gradients() -> None:
    given = example()
    learned = torch.linspace(-1, 2, TOKENS)
    for at_once in (True, False):
        losses, _ = token_losses(**given, at_once=at_once)  # type: ignore[arg-type]
        for one, other in zip(
            gradients((losses * learned).sum(), given),
            gradients((plain(given, Terms()) * learned).sum(), given),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=3e-6)


def test_log_probabilities_of_labels() -> None:
    given = example(bias=True)
    found = token_log_probabilities(**given, terms=Terms(CAPPED, smoothing=0.3))  # type: ignore[arg-type]
    wanted = -plain(given, Terms(CAPPED))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-5)
    loss, other = (-F.logsigmoid(each[:20].sum() - each[20:].sum()) for each in (found, wanted))
    for one, another in zip(gradients(loss, given), gradients(other, given), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-6)


def test_a_frozen_weight_gets_no_gradient_and_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given = example()
    assert given["weight"] is not None
    given["weight"].requires_grad_(False)
    made: list[tuple[int, ...]] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **others: made.append(size) or zeros(*size, **others))
    losses, _ = token_losses(**given)  # type: ignore[arg-type]
    (found,) = gradients(losses.sum(), given)
    torch.testing.assert_close(found, gradients(plain(given, Terms()).sum(), given)[0], rtol=1e-6, atol=3e-6)
    assert not made


def test_likeliest_words_and_ignored_tokens() -> None:
    given = example()
    labels = given["labels"]
    assert labels is not None and given["hidden"] is not None and given["weight"] is not None
    labels[3] = labels[20:30] = -100
    states, chosen, places = select(given["hidden"], labels, -100)
    losses, words = token_losses(states, given["weight"], chosen, terms=Terms(likeliest=True))
    logits = given["hidden"] @ given["weight"].t()
    counted = labels != -100
    assert torch.equal(words, logits.argmax(1)[counted])
    whole = spread(losses, places, TOKENS, 0.0)
    torch.testing.assert_close(whole, F.cross_entropy(logits, labels, reduction="none"), rtol=1e-5, atol=1e-5)
    none = select(given["hidden"], torch.full_like(labels, -100), -100)
    empty, _ = token_losses(none[0], given["weight"], none[1])
    assert [float(each.abs().sum()) for each in gradients(empty.sum(), given)] == [0.0, 0.0]


def test_bf16_is_as_exact_as_the_plain_loss() -> None:
    given = example(bias=True)
    exact = gradients(plain(given, Terms()).sum(), given)
    found = []
    for one in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            if one:
                loss = token_losses(**given)[0].sum()  # type: ignore[arg-type]
            else:
                logits = F.linear(given["hidden"], given["weight"], given["bias"])  # type: ignore[arg-type]
                loss = F.cross_entropy(logits.float(), given["labels"], reduction="sum")  # type: ignore[arg-type]
        found.append(
            [(part - other).norm() / other.norm() for part, other in zip(gradients(loss, given), exact, strict=True)]
        )
    for ours, theirs in zip(*found, strict=True):
        assert ours < 1.2 * theirs + 1e-3


def test_fp16_waits_for_the_loss_scale() -> None:
    """Gradients of a loss that is not scaled yet would vanish in fp16, whose smallest number is 6e-8."""
    given = {
        name: each if each is None or name == "labels" else each.detach().half() for name, each in example().items()
    }
    hidden = given["hidden"]
    assert hidden is not None
    hidden.requires_grad_()
    tiny = 1e-9 * token_losses(**given)[0].sum()  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(tiny * 1e9, [hidden])
    wanted = gradients(plain(given, Terms()).sum(), {"hidden": hidden})[0]
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


def _on_ranks() -> list[tuple[list, list, list, list]]:
    group = init_device_mesh("cpu", (2,)).get_group()
    rank = torch.distributed.get_rank(group)
    part = slice(102 * rank, min(102 * (rank + 1), WORDS))
    found = []
    for terms in (Terms(), Terms(CAPPED, smoothing=0.2, z_loss=0.01)):
        whole = example(bias=True)
        given = {name: each if name in ("hidden", "labels") else each[part] for name, each in whole.items()}  # type: ignore[index]
        own = Terms(terms.map, terms.smoothing, terms.z_loss, part.start, WORDS, group, likeliest=True)
        losses, words = token_losses(**given, terms=own)  # type: ignore[arg-type]
        hidden, weight, bias = gradients(losses.sum(), whole)
        for each in (hidden, weight, bias):
            torch.distributed.all_reduce(each)
        found.append((losses.tolist(), words.tolist(), [hidden.tolist(), weight.tolist(), bias.tolist()], part))
    return found


def test_words_that_ranks_share() -> None:
    for answer in run_ranks(_on_ranks, 2):
        for terms, (losses, words, parts, _) in zip(
            (Terms(), Terms(CAPPED, smoothing=0.2, z_loss=0.01)), answer, strict=True
        ):
            given = example(bias=True)
            wanted = plain(given, terms)
            torch.testing.assert_close(torch.tensor(losses).double(), wanted, rtol=1e-6, atol=1e-5)
            logits = F.linear(given["hidden"], given["weight"], given["bias"])  # type: ignore[arg-type]
            assert words == logits.argmax(1).tolist()
            for one, other in zip(parts, gradients(wanted.sum(), given), strict=True):
                torch.testing.assert_close(torch.tensor(one), other, rtol=1e-6, atol=2e-6)
