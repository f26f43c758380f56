"""Tests of text generation in evaluations: options, prompts, and that BLEU and exact match may be summed over the parts
of a data set.
"""

from __future__ import annotations

import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from trireme.errors import UserError
from trireme.trainer.generation import GenerationConfig
from trireme.trainer.tasks.prompts import beginnings
from trireme.trainer.tasks.text_scores import text_metrics, text_sums

WRITTEN = ["the cat sat on the mat", "a dog barks , loudly", "no", "", "it is what it is and no more"]
WANTED = ["the cat sat on a mat", "a dog barks loudly", "no", "nothing was written here", "it is what it is"]


def test_sums_of_parts_give_the_bleu_of_the_whole() -> None:
    names = ["bleu", "exact_match"]
    parts = [text_sums(names, WRITTEN[a:b], WANTED[a:b]) for a, b in ((0, 2), (2, 2), (2, 5))]
    sums = {name: sum(part[name] for part in parts) for name in parts[0]}
    assert sums.keys() == parts[1].keys() and all(parts[1][name].sum() == 0 for name in sums)
    scores = text_metrics({**sums, "loss": 3.0})
    assert scores["bleu"] == pytest.approx(BLEU().corpus_score(WRITTEN, [WANTED]).score, abs=1e-9)
    assert scores["exact_match"] == pytest.approx(1 / 5)
    short = (["two words", "no"], ["two words", "yes"])  # without a sequence of four words BLEU is smoothed
    assert text_metrics(text_sums(names, *short))["bleu"] == pytest.approx(
        BLEU().corpus_score(short[0], [short[1]]).score
    )
    assert text_metrics(text_sums(names, [], [])) == {"bleu": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"num_beams": 0},
        {"temperature": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"scores": ["rouge"]},
    ],
)
def test_options_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises((ValueError, UserError), match=next(iter(wrong))):
        GenerationConfig(**wrong)


def test_sampling_options_are_passed_on_only_with_do_sample() -> None:
    assert "temperature" not in GenerationConfig(temperature=0.5).arguments()
    drawn = GenerationConfig(do_sample=True, temperature=0.5, num_beams=2).arguments()
    assert drawn["temperature"] == 0.5 and "length_penalty" in drawn
    assert not {"samples", "scores"} & set(drawn)


def test_prompts_are_the_tokens_before_the_labels() -> None:
    tokens = torch.tensor([[5, 6, 7, 8, 9], [1, 2, 3, 0, 0], [4, 4, 4, 4, 4]])
    labels = torch.tensor([[-100, -100, 8, 9, -100], [2, 3, -100, -100, -100], [-100] * 5])
    prompt = beginnings(tokens, labels)
    assert prompt["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 1]]
    assert prompt["input_ids"][0].tolist() == [5, 6, 7] and prompt["input_ids"][1, -1] == 1
