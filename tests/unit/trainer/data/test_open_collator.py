"""A collator of one's own: its contract is checked at the first batch, with a message that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from trireme.errors import UserError
from trireme.trainer.data.collator import CausalLMCollator, Sample
from trireme.trainer.data.open_collator import CheckedCollator

SAMPLES: list[Sample] = [{"input_ids": np.arange(1, 9, dtype=np.uint16), "index": index} for index in range(4)]


class Changed(CausalLMCollator):
    """Changes what the usual collator gives."""

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
        (lambda batch: batch.micro_batches[0], "gives dict when it is called, not a StepBatch"),
        (lambda batch: replace(batch, micro_batches=tuple(batch.micro_batches)), "micro_batches of type tuple"),
        (lambda batch: replace(batch, labels=batch.labels + 4), "counts 32 labels, but there are 28"),
        (lambda batch: replace(batch, micro_batches=batch.micro_batches[:1]), "gives 2 rows for 4 samples"),
        (lambda batch: replace(batch, micro_batches=[None]), "gives NoneType by a call, not a dict of tensors"),
    ],
)
def test_a_wrong_step_batch(step: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(step=step)(SAMPLES)
    assert words in str(caught.value) and "collator = 'mine.Own'" in str(caught.value)
    assert "docs/extending.md" in str(caught.value)


@pytest.mark.parametrize(
    ("micro", "words"),
    [
        (lambda batch: [batch], "gives list by micro_batch, not a dict of tensors"),
        (lambda batch: {"input_ids": batch["input_ids"]}, "gives nothing as labels by micro_batch"),
        (lambda batch: batch | {"labels": batch["labels"].tolist()}, "gives list as labels by micro_batch"),
        (lambda batch: batch | {"input_ids": batch["input_ids"].int()}, "gives input_ids of torch.int32"),
        (lambda batch: batch | {"weight": 3}, "gives int as weight by micro_batch, not a tensor"),
        (lambda batch: batch | {"input_ids": -batch["input_ids"]}, "gives the token -8 by micro_batch"),
        (lambda batch: batch | {"input_ids": batch["input_ids"][:1]}, "of shape (1, 8) by micro_batch, not 2 rows"),
        (
            lambda batch: batch | {"labels": batch["labels"][:, 1:]},
            "gives labels of shape (2, 7) for input_ids of shape",
        ),
    ],
)
def test_a_wrong_micro_batch(micro: Callable[[Any], Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(micro=micro).micro_batch(SAMPLES[:2])
    assert words in str(caught.value)


def test_what_keeps_the_contract_passes_unchanged_and_is_looked_at_once() -> None:
    calls: list[int] = []
    collator = checked(step=lambda batch: (calls.append(1), batch if len(calls) == 1 else None)[1])
    assert torch.equal(collator(SAMPLES).micro_batches[1]["input_ids"][0], torch.arange(1, 9))
    assert collator(SAMPLES) is None, "later batches cost no check"
    assert collator.micro_batch(SAMPLES[:2])["labels"].shape == (2, 8)
