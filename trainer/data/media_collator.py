"""Collator for conversations with images or audio clips, which pads their tokens and concatenates their images and
clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import Problem, UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions
from .padded_collator import padded

OF_TEXTS = ("input_ids", "labels", "index", "position")
"""Names of arrays and numbers of a sample that do not describe images or audio clips."""
BESIDE = ("token_type_ids", "mm_token_type_ids")
"""Names of arrays that tell for each token whether it belongs to an image or an audio clip."""
FRAMES = ("input_features", "input_features_mask", "feature_attention_mask")
"""Names of arrays of audio clips with a dimension of frames, and of the masks that mark which frames are real."""


@dataclass
class MediaCollator(Collator):
    """Makes micro-batches of samples that have equally many images and audio clips each, so that the size of the first
    dimension is a multiple of the number of samples in all arrays. Labels stand at the positions that predict them."""

    block_size: int
    """Tokens of the longest sample; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this (but at most ``block_size``)."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        sizes = [len(sample["input_ids"]) for sample in samples]
        multiple = self.pad_to_multiple_of
        length = max(min(-(-max(sizes) // multiple) * multiple, self.block_size), max(sizes))
        inputs = {
            "input_ids": padded([sample["input_ids"] for sample in samples], length, self.pad_token_id),
            "attention_mask": padded([np.ones(size, np.int64) for size in sizes], length, 0),
        }
        for name in {name: None for sample in samples for name in sample if name not in OF_TEXTS}:
            arrays = [sample[name] for sample in samples]
            if name in BESIDE:
                inputs[name] = padded(arrays, length, 0)
                continue
            if name in FRAMES and all(any(mask in sample for mask in FRAMES[1:]) for sample in samples):
                arrays = with_silence(arrays)
            if other := [number for number, array in enumerate(arrays) if array.shape != arrays[0].shape]:
                rows = " and ".join(str(samples[number]["index"] + 1) for number in (0, other[0]))
                shapes = " and ".join(str(list(arrays[number].shape)) for number in (0, other[0]))
                why = "has images or audio clips of different numbers or sizes in one batch: "
                why += f"{name} of the samples {rows} of their set have the shapes {shapes}"
                fix = "give every conversation equally many, and a processor that makes one size of them, or set "
                raise UserError(Problem("data.source", why, fix + "trainer.micro_batch_size=1"))
            inputs[name] = torch.from_numpy(np.concatenate(arrays))
        labels = padded([np.append(sample["labels"][1:], IGNORE) for sample in samples], length, IGNORE)
        return MicroBatch(inputs, {"labels": labels}, positions(samples), sum(sizes))


def with_silence(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Pad arrays of audio clips with zeros to the same number of frames; arrays that differ in other dimensions too are
    returned as they are."""
    shapes = {array.shape for array in arrays}
    if len({len(shape) for shape in shapes}) > 1:
        return arrays
    most = np.max([*shapes], 0)
    differing = np.flatnonzero(most != np.min([*shapes], 0))
    if len(differing) != 1 or differing[0] == 0:
        return arrays
    return [np.pad(array, [(0, size - own) for size, own in zip(most, array.shape, strict=True)]) for array in arrays]
