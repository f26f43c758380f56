"""Check the first micro-batches of a user's own collator or samples. Tokens and labels must be integers in the model's
vocabulary, labels must stand at the positions that predict them, and the model's main input must be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch, StepBatch
from ..component import Component
from .base_collator import is_ours, wrong_collator

PASSED = {"input_ids", "input_values", "input_features", "pixel_values", "flattened_patches", "pixel_values_videos"}
"""Inputs of which a model needs at least one."""


def wrong_tokens(micro: MicroBatch, method: str, next_tokens: bool) -> Iterator[str]:
    """Clauses on wrong tokens and labels: tokens must be integers from 0 on, and each label must stand at the position
    that predicts it.

    Args:
        method: of the collator that made ``micro``.
        next_tokens: whether labels are the tokens that follow.
    """
    tokens, labels = micro.inputs.get("input_ids"), micro.targets.get("labels")
    for name, value in (("input_ids", tokens), ("labels", labels)):
        if isinstance(value, Tensor) and value.ndim == 2 and tokens is not None and value.dtype != torch.int64:
            yield f"gives {name} of {value.dtype} from {method}, not torch.int64"
    if isinstance(tokens, Tensor) and tokens.numel() and int(tokens.min()) < 0:
        yield f"gives the token {int(tokens.min())} from {method}: tokens are counted from 0"
    if next_tokens and isinstance(tokens, Tensor) and isinstance(labels, Tensor) and _unshifted(tokens, labels):
        yield (
            f"gives labels from {method} at the positions of their own tokens; in a micro-batch each stands at "
            "the position that predicts it (trireme.models.loss.next_token_labels shifts them)"
        )


def _unshifted(tokens: Tensor, labels: Tensor) -> bool:
    """Whether every label is the token at its place; one repeated token tells nothing."""
    if tokens.shape != labels.shape or bool((tokens == tokens[:, :1]).all()):
        return False
    counted = labels != IGNORE
    alike = int((counted & (labels == tokens)).sum())
    return int(counted.sum()) > 8 and alike == int(counted.sum())


def refuse_unknown_tokens(batch: StepBatch, model: Any, component: Component | None, samples: Any = None) -> None:
    """Check the first batch of a user's own collator or samples against the model's vocabulary; a GPU would only report
    that some assertion failed.

    Raises:
        UserError: a token has no embedding, or a label is none of the tokens.
    """
    own = component is not None and not component["_target_"].startswith("trireme.")
    if not own and (samples is None or is_ours(samples)):
        return
    wanted = {getattr(model, "main_input_name", "input_ids"), "inputs_embeds"}
    theirs = type(model).__module__.startswith("transformers.")  # a class of one's own may read anything
    lacking = (not (wanted | PASSED) & micro.inputs.keys() for micro in batch.micro_batches)
    if theirs and any(lacking):
        name, given = min(wanted - {"inputs_embeds"}, default="inputs_embeds"), ", ".join(batch.micro_batches[0].inputs)
        maker = component["_target_"] if component is not None and own else type(samples).__qualname__
        raise UserError(wrong_collator(maker, f"gives no {name}, which the model reads; it gives {given or 'nothing'}"))
    of_texts = [micro for micro in batch.micro_batches if "input_ids" in micro.inputs]
    known = _embeddings(model) if of_texts else None
    for kind, found in (
        ("token", [micro.inputs["input_ids"] for micro in of_texts]),
        ("label", [micro.targets["labels"] for micro in of_texts if "labels" in micro.targets]),
    ):
        whole = [rows for rows in found if isinstance(rows, Tensor) and rows.numel() and not rows.is_floating_point()]
        most = max((int(rows.max()) for rows in whole), default=0)
        if known is not None and most >= known:
            name = component["_target_"] if own and component else type(samples).__qualname__
            raise UserError(wrong_collator(name, f"gives the {kind} {most}, but the model has {known} embeddings"))


def _embeddings(model: Any) -> int | None:
    """Vocabulary size of a transformers model; in a model of several parts, of the part that reads texts."""
    try:
        found = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a model of several parts
        found = None
    return getattr(model.config.get_text_config(), "vocab_size", None) if found is None else found
