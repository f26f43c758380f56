"""``model.loss``: let a language model's head return losses instead of logits, to save memory.

The loss is computed inside the head's forward pass. There every parallelism plan has the weight of the head: FSDP and
ZeRO-3 gather it for this pass, and each tensor-parallel rank has its shard. The head still returns logits when no loss
is asked for, as in generation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Problem, UserError
from .check_loss import in_pieces, liger_problem
from .find_blocks import heads_of
from .head_output import HeadOutput, Step, logit_map
from .linear_loss import select, spread, token_losses
from .loss import IGNORE
from .loss_terms import LogitMap, Terms
from .low_rank import adapter_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .family import ModelFamily

log = logging.getLogger("trireme.models")
Choice = Literal["auto", "plain", "chunked", "liger"]


@dataclass(frozen=True)
class Asked:
    """A task's request to the head for one micro-batch: losses in place of logits."""

    labels: Tensor
    """[batch, length], each at the position that predicts it; others are ``IGNORE``."""
    weights: Tensor | None = None
    """[batch, length], factors of the losses."""
    smoothing: float = 0.0
    z_loss: float = 0.0
    likeliest: bool = False
    """Whether the likeliest token of each position with a label is asked for too."""
    summed: bool = True
    """Whether all losses will get the same gradient, as those of a sum do."""


Ask = Callable[[dict[str, Any], bool], Asked | None]
"""(targets of a micro-batch, whether it trains) -> the request to the head; None asks for logits."""


class HeadPart:
    """The head on a rank that holds it whole. A tensor rank holds the head for a part of the vocabulary
    (``parallel/tensor_styles.py``)."""

    first, words = 0, 0
    group: dist.ProcessGroup | None = None

    def enter(self, hidden: Tensor) -> Tensor:
        """Hidden states as inputs of this rank's part of the head."""
        return hidden

    def parameters(self, head: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of this rank's part of the head."""
        return head.weight, head.bias


class HeadLoss:
    """How the head of one model computes losses, and the request that it is to answer now."""

    def __init__(self, logits: LogitMap, steps: list[Step], ask: Ask, fused: bool = False) -> None:
        """
        Args:
            logits: the map that the model applies to its logits, which consists of ``steps``.
            fused: compute by the kernels of Liger.
        """
        self.logits, self.steps, self.ask, self.fused = logits, steps, ask, fused
        self.at_once = True
        """Whether gradients may be computed in the forward pass. They take memory until the backward pass, which is
        wasted where other micro-batches come between."""
        self.asked: Asked | None = None

    def attach(self, model: nn.Module, family: ModelFamily) -> None:
        """Make the head of a placed model, or of its last pipeline stage, return losses when they are asked for."""
        for _, head in heads_of(model, family):
            if isinstance(head, nn.Linear) or computes_losses(head):
                own = head.__dict__.get("forward")
                head.head_loss, head.logits_forward = self, own  # type: ignore[assignment]
                head.forward = MethodType(_forward, head)

    @contextmanager
    def running(self, asked: Asked | None) -> Iterator[None]:
        """The context of one forward pass."""
        before, self.asked = self.asked, asked
        try:
            yield
        finally:
            self.asked = before

    def __deepcopy__(self, memo: dict[int, Any]) -> HeadLoss:
        return self  # copies of a model share it

    def of_tokens(self, head: Any, hidden: Tensor, asked: Asked) -> HeadOutput:
        """Losses and likeliest tokens of hidden states [batch, length, width]."""
        if computes_losses(head):
            return self._computed_by_head(head, hidden, asked)
        part: HeadPart = head.__dict__.get("head_part") or HeadPart()
        labels, length = asked.labels, hidden.shape[1]
        before = (length - labels.shape[1], 0)  # hidden states of an image come before those of its text
        states, chosen, places = select(
            part.enter(hidden).flatten(0, 1), F.pad(labels, before, value=IGNORE).flatten(), IGNORE
        )
        weights = asked.weights
        if weights is not None:
            weights = F.pad(weights, before).flatten()
            weights = weights if places is None else weights[places]
        split = part.first, part.words, part.group
        terms = Terms(self.logits, asked.smoothing, asked.z_loss, *split, asked.likeliest, self.fused)
        weight, bias = part.parameters(head)
        losses, tokens = token_losses(states, weight, chosen, bias, terms, weights, self.at_once and asked.summed)
        found = [spread(each, places, labels.shape[0] * length, 0.0) for each in (losses, tokens.float())]
        values = torch.stack(found, -1).view(labels.shape[0], length, 2)
        return HeadOutput.of(values, list(self.steps), (asked.smoothing, asked.z_loss))

    def _computed_by_head(self, head: Any, hidden: Tensor, asked: Asked) -> HeadOutput:
        """``of_tokens`` for a head that computes losses itself. Its scores are log-probabilities, so z-losses are 0."""
        labels = asked.labels
        states, chosen, places = select(hidden.flatten(0, 1), labels.flatten(), IGNORE)
        losses, tokens = head.token_losses(states, chosen, asked.likeliest)
        if asked.weights is not None:
            weights = asked.weights.flatten().float()
            losses = losses * (weights if places is None else weights[places])
        found = [spread(each, places, labels.numel(), 0.0) for each in (losses, tokens.float())]
        values = torch.stack(found, -1).view(*labels.shape, 2)
        return HeadOutput.of(values, list(self.steps), (asked.smoothing, asked.z_loss))


def _forward(self: Any, hidden: Tensor) -> Tensor:
    """Forward pass of a head: losses if they are asked for, else logits."""
    if (asked := self.head_loss.asked) is not None and not (asked.smoothing and computes_losses(self)):
        return self.head_loss.of_tokens(self, hidden, asked)
    return type(self).forward(self, hidden) if self.logits_forward is None else self.logits_forward(hidden)


def computes_losses(head: nn.Module) -> bool:
    """Whether a head computes losses of labels itself, by ``token_losses(states, labels, likeliest)``, as an adaptive
    softmax does; smoothed ones need all scores."""
    return hasattr(head, "token_losses")


def head_loss(
    choice: Choice, model: PreTrainedModel, family: ModelFamily, ask: Ask | None, on: torch.device, tensor: int = 1
) -> HeadLoss | None:
    """How ``model`` (whole, on the meta device) computes losses; None for plain ones, of logits.

    Args:
        ask: None for a task that reads logits.
        on: the device that it will run on.
        tensor: number of tensor ranks.

    Raises:
        UserError: the recipe asks for what the model, the task or the machine does not have.
    """
    heads = heads_of(model, family)
    if choice in ("auto", "chunked") and ask is not None and len(heads) == 1 and computes_losses(heads[0][1]):
        return HeadLoss(LogitMap(), [], ask)
    if not in_pieces(choice, int(getattr(heads[0][1], "out_features", 0)) if heads else 0):
        return None
    problem, found = _refusal(model, family, ask), (None, [], "")
    if not problem:
        found = logit_map(model, heads[0][1])
        problem = found[2] and f"is not possible, since {family.title} {found[2]}"
    if choice == "liger" and not problem:
        problem = liger_problem(on.type, tensor)
    if problem and choice == "auto":
        log.info("model.loss=auto: losses are computed of all logits; in pieces it %s", problem)
        return None
    if problem:
        raise UserError(Problem("model.loss", problem, "set model.loss=auto", choice))
    assert found[0] is not None and ask is not None
    return HeadLoss(found[0], found[1], ask, fused=choice == "liger")


def _refusal(model: PreTrainedModel, family: ModelFamily, ask: Ask | None) -> str:
    """Why the head of ``model`` cannot give losses; empty if it can, as far as it can be seen."""
    heads = heads_of(model, family)
    if ask is None:
        return "is not possible, since the task reads logits"
    if len(heads) != 1:
        return f"is not possible, since {family.title} has {len(heads) or 'no'} heads over tokens"
    path, head = heads[0]
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return f"is not possible, since the head {path} is a {type(head).__name__}, which is not a plain linear layer"
    if adapter_in(head) is not None:
        return f"is not possible, since the head {path} has an adapter"
    return ""
