"""Tests of speech recognition with the CTC loss: it equals that of transformers, samples without labels count nothing,
and error rates and predictions are right.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC
from trireme.models.facts import Facts
from trireme.models.loss import IGNORE
from trireme.models.vocabulary import Vocabulary
from trireme.parallel.mesh import Mesh
from trireme.parallel.plan import Degrees
from trireme.trainer.records import Records
from trireme.trainer.tasks.checked import CheckedTask
from trireme.trainer.tasks.ctc import CTC
from trireme.trainer.tasks.edit_distance import edit_distance

LABELS = torch.tensor([[1, 2, 2, IGNORE], [3, 4, 5, 6]])
FRAMES = torch.tensor([9, 12])


def task(blank: int = 0) -> CTC:
    made = CTC()
    processor = SimpleNamespace(tokenizer=SimpleNamespace(word_delimiter_token_id=2))
    made.configure(processor, Facts(Vocabulary(8, pad=blank)))
    return made


def outputs(seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("blank", [0, 7])
def test_the_loss_is_that_of_transformers(blank: int) -> None:
    config = Wav2Vec2Config(vocab_size=8, pad_token_id=blank)
    function = Wav2Vec2ForCTC.loss_function.fget(SimpleNamespace(loss_type="ForCTC", config=config))  # type: ignore
    logits = outputs().logits
    theirs = function(
        logits=logits, labels=LABELS, logit_lengths=FRAMES, blank_token_id=blank, reduction="sum", zero_infinity=False
    )
    assert torch.allclose(
        task(blank).loss(SimpleNamespace(logits=logits), {"labels": LABELS, "frames": FRAMES}), theirs
    )


def test_rows_without_labels_count_nothing() -> None:
    ctc, there = task(), outputs()
    there.logits.requires_grad_()
    empty = {"labels": torch.full_like(LABELS, IGNORE), "frames": torch.full_like(FRAMES, IGNORE)}
    loss = ctc.loss(there, empty)
    loss.backward()
    assert loss == 0 and not there.logits.grad.any()
    half = {"labels": LABELS.clone(), "frames": FRAMES.clone()}
    half["labels"][1], half["frames"][1] = IGNORE, IGNORE
    first = {"labels": LABELS[:1], "frames": FRAMES[:1]}
    one = SimpleNamespace(logits=there.logits[:1])
    assert torch.allclose(ctc.loss(there, half), ctc.loss(one, first)) and ctc.count(half) == 3
    assert torch.equal(ctc.evaluate(there, half)["counts"], ctc.evaluate(one, first)["counts"])


def test_error_rates_count_edits() -> None:
    """The model says 1 1 0 1 2 3 (the words 1 1, and 3); the transcript is 1 1 1 2 3."""
    said = torch.tensor([[1, 1, 0, 1, 2, 3, 3, 5]])
    targets = {"labels": torch.tensor([[1, 1, 1, 2, 3]]), "frames": torch.tensor([7])}
    logits = torch.nn.functional.one_hot(said, 8).float() * 9
    sums = task().evaluate(SimpleNamespace(logits=logits), targets)
    metrics = task().metrics({"loss": 1.0, "counts": sums["counts"].double()})
    assert metrics == {"loss": 0.2, "cer": 1 / 5, "wer": 1 / 2}


def test_records_hold_tokens_and_predictions_hold_text() -> None:
    """The model says a a - a, a space, b; the transcript is a, a space, b. The second sample is padding."""
    said = torch.tensor([[3, 3, 0, 3, 2, 4, 4, 5], [5, 5, 5, 5, 5, 5, 5, 5]])
    targets = {"labels": torch.tensor([[3, 2, 4], [IGNORE] * 3]), "frames": torch.tensor([7, IGNORE])}
    outputs = SimpleNamespace(logits=torch.nn.functional.one_hot(said, 8).float())
    checked = CheckedTask(task())
    records = Records(Mesh(Degrees(), 0, torch.device("cpu"), None, None))
    records.add(torch.tensor([5, -1]), checked.records(outputs, targets))
    records.gather()
    (record,) = records
    assert record == {"index": 5, "tokens": [3, 3, 2, 4], "wanted": [3, 2, 4]}
    tokenizer = SimpleNamespace(convert_ids_to_tokens=["-", "<unk>", "|", "a", "b", "c"].__getitem__)
    row = {"index": 5, "prediction": "aa b", "wanted": "a b"}
    assert checked.prediction(record, Facts(), tokenizer) == row
    checked.task.delimiter = None
    assert checked.prediction(record, Facts(), tokenizer) == {**row, "prediction": "aa|b", "wanted": "a|b"}


def test_edit_distance_is_that_of_the_recursion() -> None:
    def slow(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        same = slow(one[1:], other[1:]) + (one[0] != other[0])
        return min(same, slow(one[1:], other) + 1, slow(one, other[1:]) + 1)

    numbers = np.random.default_rng(0)
    for _ in range(40):
        one, other = ("".join(numbers.choice(list("abc"), numbers.integers(6))) for _ in range(2))
        assert edit_distance(one, other) == slow(one, other), (one, other)
