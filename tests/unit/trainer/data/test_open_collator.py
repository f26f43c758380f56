"""Tests that a custom collator is checked at its first batch, and that errors say what is wrong with the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from trireme.errors import UserError
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.trainer.data.collator import CausalLMCollator, Sample
from trireme.trainer.data.open_collator import CheckedCollator

SAMPLES: list[Sample] = [{"input_ids": np.arange(1, 9, dtype=np.uint16), "index": index} for index in range(4)]


class Changed(CausalLMCollator):
    """A collator that changes the batches of the usual collator."""

    step: Callable[[Any], Any] = staticmethod(lambda batch: batch)
    micro: Callable[[Any], Any] = staticmethod(lambda batch: batch)

    def __call__(self, samples: Any) -> Any:
        return self.step(super().__call__(samples))

    def micro_batch(self, samples: Any) -> Any:
        return self.micro(super().micro_batch(samples))


def checked(**changes: Callable[[Any], Any]) -> CheckedCollator:
    cls = type("Own", (Changed,), {name: staticmethod(change) for name, change in changes.items()})
    return CheckedCollator(cls(8, pad_token_id=0, micro_batch_size=2), "mine.Own", 2)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda batch: batch[0], "gives MicroBatch when it is called, not a list of MicroBatch"),
        (lambda batch: tuple(batch), "gives tuple when it is called, not a list of MicroBatch"),
        (lambda batch: StepBatch(batch, 28, 32, [0, 1, 2, 3]), "gives StepBatch when it is called, not a list"),
        (lambda batch: batch[:1], "gives 2 rows for 4 samples"),
        (lambda batch: [None], "gives NoneType from __call__, not a MicroBatch"),
        (
            lambda batch: [{"input_ids": one.inputs["input_ids"]} for one in batch],
            "gives dict from __call__, not a MicroB",
        ),
    ],
)
def test_a_wrong_step(step: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(step=step)(SAMPLES)
    assert words in str(caught.value) and "collator = 'mine.Own'" in str(caught.value)
    assert "docs/extending.md" in str(caught.value)


def inputs(change: Callable[[Any], Any]) -> Callable[[MicroBatch], MicroBatch]:
    return lambda micro: replace(micro, inputs={"input_ids": change(micro.inputs["input_ids"])})


def labels(change: Callable[[Any], Any]) -> Callable[[MicroBatch], MicroBatch]:
    return lambda micro: replace(micro, targets={"labels": change(micro.targets["labels"])})


@pytest.mark.parametrize(
    ("micro", "words"),
    [
        (lambda batch: [batch], "gives list from micro_batch, not a MicroBatch"),
        (inputs(lambda tokens: tokens.tolist()), "gives list as input_ids from micro_batch"),
        (inputs(lambda tokens: tokens.int()), "gives input_ids of torch.int32"),
        (inputs(lambda tokens: -tokens), "gives the token -8 from micro_batch"),
        (inputs(lambda tokens: tokens[:1]), "of shape (1, 8) from micro_batch, not 2 rows"),
        (lambda batch: replace(batch, inputs=batch.inputs | {"weight": 3}), "gives int as weight from micro_batch"),
        (labels(lambda tokens: tokens[:1]), "gives labels of shape (1, 8) from micro_batch, not 2 rows"),
        (labels(lambda tokens: tokens.int()), "gives labels of torch.int32"),
        (
            lambda batch: replace(batch, targets={"labels": batch.inputs["input_ids"]}),
            "at the positions of their own tokens",
        ),
        (lambda batch: replace(batch, samples=batch.samples[:1]), "gives samples that are not 2 positions"),
    ],
)
def test_a_wrong_micro_batch(micro: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(micro=micro).micro_batch(SAMPLES[:2])
    assert words in str(caught.value)


def test_correct_batches_pass_unchanged_and_only_the_first_is_checked() -> None:
    calls: list[int] = []
    collator = checked(step=lambda batch: (calls.append(1), batch if len(calls) == 1 else None)[1])
    assert torch.equal(collator(SAMPLES)[1].inputs["input_ids"][0], torch.arange(1, 9))
    assert collator(SAMPLES) is None, "later batches cost no check"
    assert collator.micro_batch(SAMPLES[:2]).targets["labels"].shape == (2, 8)
