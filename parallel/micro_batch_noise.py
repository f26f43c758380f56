"""Run a micro-batch (of texts, images or audio) with reproducible dropout and NEFTune noise: collect the values that
this noise is computed from, and make the context manager in which the model or a pipeline stage runs.

These are sample positions, document numbers and lengths. NEFTune needs the length of each sample without padding; only
this file knows which inputs give it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ..models.loss import IGNORE
from ..models.noise import Noise
from .micro_batch import MicroBatch

SAMPLES, DOCUMENTS, LENGTHS = "noise_samples", "noise_documents", "noise_lengths"
"""Names under which a pipeline passes these values to its stages."""


def noise_of(noise: Noise | None, micro: MicroBatch) -> AbstractContextManager:
    """The context in which the model runs ``micro``, forward and backward, for training."""
    if noise is None:
        return nullcontext()
    packed = micro.documents is not None
    lengths = targets = None
    if noise.neftune_alpha and not packed:
        lengths, targets = input_lengths(micro), target_lengths(micro)
    places = micro.inputs.get("position_ids") if packed else None
    return noise.running(noise.keys_of(_numbers(micro), micro.documents, places, lengths, targets))


def stage_inputs(micro_batches: list[MicroBatch], padded: list[MicroBatch]) -> dict[str, Tensor]:
    """The values from which the stages of a pipeline compute noise, concatenated over all micro-batches.

    Args:
        padded: the same micro-batches, padded to one length.
    """
    found = {SAMPLES: torch.cat([_numbers(micro) for micro in padded])}
    documents = [micro.documents for micro in padded if micro.documents is not None]
    if documents:
        return found | {DOCUMENTS: torch.cat(documents)}
    return found | {LENGTHS: torch.cat([_lengths(micro) for micro in micro_batches])}


def noise_of_stage(noise: Noise | None, inputs: dict[str, Tensor]) -> AbstractContextManager:
    """The context in which a stage runs a micro-batch; removes the values of ``stage_inputs`` from ``inputs``."""
    samples, documents, lengths = (inputs.pop(name, None) for name in (SAMPLES, DOCUMENTS, LENGTHS))
    if noise is None or samples is None:
        return nullcontext()
    places = inputs.get("position_ids") if documents is not None else None
    return noise.running(noise.keys_of(samples, documents, places, lengths))


def input_lengths(micro: MicroBatch) -> Tensor | None:
    """Tokens of each sample, [rows, 1], from the mask of its padding; None if nothing is padded."""
    mask = micro.inputs.get("attention_mask")
    return mask.sum(1, keepdim=True) if isinstance(mask, Tensor) and mask.ndim == 2 else None


def _numbers(micro: MicroBatch) -> Tensor:
    """Number that seeds the noise of each row, [rows]."""
    return micro.samples if micro.draws is None else micro.draws


def _lengths(micro: MicroBatch) -> Tensor:
    found, tokens = input_lengths(micro), micro.inputs["input_ids"]
    return tokens.new_full((len(tokens), 1), tokens.shape[1]) if found is None else found


def target_lengths(micro: MicroBatch) -> Tensor | None:
    """Number of tokens of each sample that the decoder reads, [rows, 1]; None without a decoder or if it is unknown."""
    mask = micro.inputs.get("decoder_attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2:
        return mask.sum(1, keepdim=True)
    labels = micro.targets.get("labels")
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        return None
    order = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    return torch.where(labels != IGNORE, order, 0).amax(1, keepdim=True)  # padding comes last, and has no labels
