"""Cross-entropy and log-probabilities of a linear layer over a large vocabulary, computed for some tokens at a time to
save memory.

The usual loss keeps logits, log-probabilities and gradients of shape [tokens, vocabulary]. Here the logits of a chunk
of tokens are computed in one buffer and replaced by their gradient in place. This gradient is multiplied into the
gradients of the hidden states and of the weight immediately. So there are as many matrix products as with the usual
loss, and tokens without a label are skipped. The idea is that of Liger (https://arxiv.org/abs/2410.10989). torch's
``F.linear_cross_entropy`` has no label smoothing, no soft cap, and no split vocabulary.

The loss of a token is ``log Z - (1 - e) y_t - e mean(y) + c (log Z)^2``. Here z are the logits, y = scale z or cap
tanh(scale z) are the mapped logits, log Z = log sum exp y, t is the label, e the label smoothing
(https://arxiv.org/abs/1512.00567) and c the weight of the z-loss (https://arxiv.org/abs/2204.02311, section 5).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .check_loss import PIECE
from .loss_terms import Terms, Wanted

BUFFER = {"cpu": 160 * 2**20}
"""Bytes of logits in fp32 that are held at once, by type of device; GPUs are slow on products of few tokens."""
SHARE = 8
"""Number of blocks into which these logits are divided for the softmax, which needs a copy of one block. Each block
costs a dozen operations, and all threads must begin and end every operation together."""


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    terms: Terms | None = None,
    weights: Tensor | None = None,
    at_once: bool = True,
) -> tuple[Tensor, Tensor]:
    """Loss of each token in nats (fp32), and the likeliest next token (int64; the label if that is not asked for).

    Args:
        hidden: [tokens, width].
        weight: [words, width], this rank's part of the vocabulary.
        labels: [tokens], indices in the whole vocabulary, without ``IGNORE``.
        bias: [words], this rank's part of the vocabulary.
        weights: [tokens], factors of the losses; None for 1. They get no gradient.
        at_once: compute gradients in the forward pass, and keep that of the weight until the backward pass. This suits
            a sum, in which all tokens get the same gradient; for other gradients the logits are computed again.
    """
    # In fp16 gradients are only in range once the loss is scaled, in the backward pass.
    at_once = at_once and torch.is_grad_enabled() and _compute_type(weight) != torch.float16
    return _TokenLosses.apply(hidden, weight, bias, labels, weights, terms or Terms(), at_once)


def token_log_probabilities(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, terms: Terms | None = None
) -> Tensor:
    """Log-probability of each token's label [tokens] (fp32), for losses whose gradient differs by token, such as those
    of preferences. The backward pass computes the logits again, in pieces too.

    Args:
        hidden, weight, labels, bias: see ``token_losses``.
        terms: smoothing and z-loss in them are not used.
    """
    plain = replace(terms or Terms(), smoothing=0.0, z_loss=0.0)
    return -token_losses(hidden, weight, labels, bias, plain, at_once=False)[0]


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weights: Tensor | None,
        terms: Terms,
        at_once: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.terms, ctx.compute = terms, _compute_type(weight)
        ctx.save_for_backward(hidden, weight, bias, labels, weights)
        needed = ctx.needs_input_grad[:3] if at_once else (False, False, False)
        if terms.fused and any(needed) and len(labels):
            from .liger_loss import fused_losses

            losses, likeliest, found = fused_losses(hidden, weight, bias, labels, weights, terms, ctx.compute)
        else:
            losses, likeliest, found = _losses(
                hidden, weight, bias, labels, weights, terms, ctx.compute, needed, any(needed)
            )
        ctx.found = found if any(needed) else None
        ctx.mark_non_differentiable(likeliest)
        return losses, likeliest

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient = grad_outputs[0]
        found, ctx.found = ctx.found, None
        hidden, weight, bias, labels, weights = ctx.saved_tensors
        if found is not None and gradient.numel() and bool((gradient == gradient[0]).all()):
            parts = [found.hidden, found.weight, found.bias]
            del found
            if float(gradient[0]) != 1.0:
                for part in parts:
                    if part is not None:
                        part.mul_(gradient[0])
        else:
            del found
            factors = gradient if weights is None else gradient * weights
            needed = ctx.needs_input_grad[:3]
            _, _, computed = _losses(hidden, weight, bias, labels, factors, ctx.terms, ctx.compute, needed, True)
            parts = [computed.hidden, computed.weight, computed.bias]
            del computed
        types = [hidden.dtype, weight.dtype, None if bias is None else bias.dtype]
        for place, kind in enumerate(types):
            part = parts[place]
            if part is not None and kind is not None and part.dtype != kind:
                parts[place] = part.to(kind)
            del part
        return *parts, None, None, None, None


def _compute_type(weight: Tensor) -> torch.dtype:
    """Type in which a linear layer would compute."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


@torch.no_grad()
def _losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    weights: Tensor | None,
    terms: Terms,
    compute: torch.dtype,
    needed: tuple[bool, ...],
    backward: bool,
) -> tuple[Tensor, Tensor, Wanted]:
    """Losses, likeliest tokens, and those gradients of the sum of the losses that are ``needed``."""
    with torch.autocast(hidden.device.type, enabled=False):
        states, matrix = hidden.to(compute), weight.to(compute)
        offset = None if bias is None else bias.to(compute)
        size = matrix.shape[0]
        wanted = Wanted(
            torch.empty_like(states, dtype=torch.float32) if needed[0] else None,
            torch.zeros(matrix.shape, dtype=torch.float32, device=matrix.device) if needed[1] else None,
            torch.zeros(size, dtype=torch.float32, device=matrix.device) if needed[2] else None,
        )
        losses = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        likeliest = labels.clone()
        pieces = [*_pieces(len(labels), size, hidden.device.type)]
        rows = max((stop - start for start, stop in pieces), default=0)
        buffer = torch.empty(rows, size, dtype=torch.float32, device=hidden.device)
        low = buffer if compute == torch.float32 else torch.empty_like(buffer, dtype=compute)
        for start, stop in pieces:
            logits, product = buffer[: stop - start], low[: stop - start]
            _multiply(states[start:stop], matrix, offset, product)
            if product is not logits:
                logits.copy_(product)
            own = slice(start, stop)
            factors = None if weights is None else weights[own].float()
            for part in _blocks(stop - start, terms.group):
                here = slice(start + part.start, start + part.stop)
                losses[here], likeliest[here] = _piece(
                    logits[part], labels[here], None if factors is None else factors[part], terms, backward
                )
            if backward:
                if product is not logits:
                    product.copy_(logits)
                _add_gradients(wanted, own, product, states[own], matrix)
    return losses, likeliest, wanted


def _pieces(tokens: int, words: int, device: str) -> Iterator[tuple[int, int]]:
    """First and last token of each piece; all are about equally large."""
    most = max(BUFFER.get(device, PIECE) // (4 * words), 16)
    count = -(-tokens // most)
    for number in range(count):
        yield tokens * number // count, tokens * (number + 1) // count


def _blocks(rows: int, group: dist.ProcessGroup | None) -> Iterator[slice]:
    """Tokens that pass through the softmax together; all where ranks must exchange numbers of each."""
    step = rows if group is not None else -(-rows // SHARE)
    for start in range(0, rows, max(step, 1)):
        yield slice(start, min(start + step, rows))


def _multiply(states: Tensor, matrix: Tensor, offset: Tensor | None, out: Tensor) -> None:
    if offset is None:
        torch.mm(states, matrix.t(), out=out)
    else:
        torch.addmm(offset, states, matrix.t(), out=out)


def _piece(
    logits: Tensor, labels: Tensor, factors: Tensor | None, terms: Terms, backward: bool
) -> tuple[Tensor, Tensor]:
    """Losses and likeliest next tokens of some tokens; if ``backward``, gradients replace the values of ``logits``."""
    y = terms.map.apply_(logits)
    words = terms.words or y.shape[1]
    places = labels - terms.first
    here = (places >= 0) & (places < y.shape[1])
    places = places.where(here, 0)[:, None]
    own = y.gather(1, places)[:, 0].where(here, 0.0)
    if terms.likeliest:
        most, likeliest = y.max(1)  # on CPUs less than half of the time of argmax
        likeliest = likeliest + terms.first
    else:
        most, likeliest = y.amax(1), labels
    sums = y.sum(1) if terms.smoothing else own
    powers = torch.sub(y, most[:, None]).exp_()
    total = powers.sum(1)
    if terms.group is not None:
        scale, total, own, sums, likeliest = _joined(most, total, own, sums, likeliest, terms.group)
        powers.mul_(scale[0][:, None])
        most = scale[1]
    log_z = most + total.log()
    losses = log_z - (1 - terms.smoothing) * own + terms.z_loss * log_z.square()
    if terms.smoothing:
        losses = losses - terms.smoothing / words * sums
    if factors is not None:
        losses = losses * factors
    if backward:
        _to_gradient(y, powers, places, here, factors, total, log_z, words, terms)
    return losses, likeliest


def _to_gradient(
    y: Tensor,
    powers: Tensor,
    places: Tensor,
    here: Tensor,
    factors: Tensor | None,
    total: Tensor,
    log_z: Tensor,
    words: int,
    terms: Terms,
) -> None:
    """Turn mapped logits into the gradients of logits before the map, in place."""
    slope = None if terms.map.cap is None else terms.map.slope_(y)
    share = (1 + 2 * terms.z_loss * log_z) / total
    taken = here.float() * (1 - terms.smoothing)
    even = torch.full_like(share, terms.smoothing / words) if terms.smoothing else None
    if factors is not None:
        share, taken = share * factors, taken * factors
        even = None if even is None else even * factors
    if slope is None and terms.map.scale != 1.0:
        share, taken = share * terms.map.scale, taken * terms.map.scale
        even = None if even is None else even * terms.map.scale
    powers.mul_(share[:, None])
    if even is not None:
        powers.sub_(even[:, None])
    powers.scatter_add_(1, places, -taken[:, None])
    if slope is None:
        y.copy_(powers)
    else:
        y.mul_(powers)


def _joined(
    most: Tensor, total: Tensor, own: Tensor, sums: Tensor, likeliest: Tensor, group: dist.ProcessGroup
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, Tensor, Tensor]:
    """The same numbers for the whole vocabulary, by one all-gather of five numbers per token.

    Returns:
        (factor of this rank's powers, greatest logit), sum of powers, logit of the label, sum of logits, likeliest.
    """
    sent = torch.stack([most, total, own, sums, likeliest.float()])
    ranks = dist.get_world_size(group)
    found = [torch.empty_like(sent) for _ in range(ranks)]
    dist.all_gather(found, sent, group=group)
    each = torch.stack(found)  # [ranks, 5, tokens]
    greatest, rank = each[:, 0].max(0)
    factors = (each[:, 0] - greatest).exp()
    total = (each[:, 1] * factors).sum(0)
    words = each[:, 4].gather(0, rank[None])[0].long()
    return ((most - greatest).exp(), greatest), total, each[:, 2].sum(0), each[:, 3].sum(0), words


def _add_gradients(wanted: Wanted, own: slice, gradient: Tensor, states: Tensor, matrix: Tensor) -> None:
    """Add the gradients of some tokens, whose logits have ``gradient``."""
    if wanted.hidden is not None:
        wanted.hidden[own] = gradient @ matrix
    if wanted.bias is not None:
        wanted.bias.add_(gradient.sum(0, dtype=torch.float32))
    if wanted.weight is None:
        return
    if gradient.dtype == torch.float32:
        wanted.weight.addmm_(gradient.t(), states)
        return
    step = max(BUFFER["cpu"] // (8 * matrix.shape[1]), 1)  # the product of 16 bits is added in fp32, some words at once
    for start in range(0, len(matrix), step):
        words = slice(start, start + step)
        wanted.weight[words].add_(gradient[:, words].t() @ states)


def select(hidden: Tensor, labels: Tensor, ignored: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states and labels of the tokens with a label, and their places; None if all have one.

    Args:
        hidden: [tokens, width].
        labels: [tokens].
    """
    places = (labels != ignored).nonzero()[:, 0]
    if len(places) == len(labels):
        return hidden, labels, None
    return hidden.index_select(0, places), labels.index_select(0, places), places


def spread(values: Tensor, places: Tensor | None, tokens: int, empty: float) -> Tensor:
    """``values`` of the tokens at ``places`` among all tokens; others are ``empty``."""
    if places is None:
        return values
    return values.new_full((tokens,), empty).index_copy(0, places, values)
