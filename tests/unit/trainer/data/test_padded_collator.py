"""Tests of padding samples to one length: a batch of texts holds the inputs that the model accepts, and arrays of
several dimensions are padded too.
"""

from __future__ import annotations

import numpy as np
import torch
from trireme.trainer.data.image_text_collator import captions
from trireme.trainer.data.padded_collator import PaddedCollator, padded

SAMPLES = [
    {"input_ids": np.arange(1, size), "token_type_ids": np.zeros(size - 1, np.int64), "label": 0, "index": size}
    for size in (3, 5)
]


def test_a_model_without_a_mask_sees_texts_of_one_length() -> None:
    both = frozenset({"input_ids", "attention_mask"})
    micro = PaddedCollator(32, 0, 2, inputs=both).micro_batch(SAMPLES)
    assert set(micro.inputs) == both and micro.inputs["input_ids"].shape == (2, 8)
    micro = PaddedCollator(32, 0, 2, inputs=frozenset({"input_ids"})).micro_batch(SAMPLES)
    assert set(micro.inputs) == {"input_ids"} and micro.inputs["input_ids"].shape == (2, 32)


def test_a_model_whose_inputs_are_not_known_gets_all() -> None:
    assert set(PaddedCollator(32, 0, 2).micro_batch(SAMPLES).inputs) == {
        "input_ids",
        "attention_mask",
        "token_type_ids",
    }
    assert set(captions(SAMPLES, 8, 0, frozenset({"input_ids"}))) == {"input_ids"}


def test_arrays_of_several_dimensions_are_padded_along_the_first() -> None:
    found = padded([np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)], 4, 7.0)
    assert found.shape == (2, 4, 3) and torch.equal(found[0, 2:], torch.full((2, 3), 7.0))
