"""Tests of the collator for Perceiver AR, which predicts only the last tokens of a window of text.

The random windows depend on seed and position only.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipes import tiny_recipe
from trireme.configs.schema import read_recipe
from trireme.errors import UserError
from trireme.launch.compose import compose
from trireme.models.loss import IGNORE
from trireme.models.perceiver_ar import PerceiverARConfig
from trireme.parallel.micro_batch import MicroBatch
from trireme.trainer.data.latent_collator import LatentCollator
from trireme.trainer.tasks.prompts import beginnings

BLOCK, LATENTS = 20, 4
MODEL = PerceiverARConfig(max_latents=LATENTS, max_position_embeddings=32)


def collator(**options: Any) -> LatentCollator:
    return LatentCollator(
        **{"block_size": BLOCK, "pad_token_id": 0, "micro_batch_size": 4, "seed": 5, "model": MODEL, **options}
    )


def samples(count: int, length: int = BLOCK, training: bool = True) -> list[dict[str, Any]]:
    """Samples whose tokens encode their place: token t of sample s is 100 s + t + 1."""
    found = []
    for index in range(count):
        sample: dict[str, Any] = {"index": index, "input_ids": 100 * index + np.arange(length) + 1}
        found.append(sample | ({"position": 1000 + index} if training else {}))
    return found


def real(micro: MicroBatch, row: int) -> list[int]:
    """Tokens of a row without its padding."""
    tokens, mask = micro.inputs["input_ids"][row], micro.inputs.get("attention_mask")
    return (tokens if mask is None else tokens[mask[row] != 0]).tolist()


def test_windows_are_pieces_of_samples_and_every_label_is_the_next_token() -> None:
    lengths, starts = Counter(), Counter()
    for micro in collator()(samples(400)):
        assert micro.inputs["input_ids"].shape == (4, BLOCK) and micro.targets["labels"].shape == (4, LATENTS)
        assert micro.length == sum(len(real(micro, row)) for row in range(4))
        for row, position in enumerate(micro.samples.tolist()):
            tokens, labels = real(micro, row), micro.targets["labels"][row].tolist()
            first = 100 * (position - 1000) + 1
            assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
            assert first <= tokens[0] and tokens[-1] < first + BLOCK
            last = IGNORE if tokens[-1] == first + BLOCK - 1 else tokens[-1] + 1
            assert labels == [*tokens[-LATENTS + 1 :], last]
            lengths[len(tokens) - LATENTS] += 1
            starts[tokens[0] - first] += len(tokens) == LATENTS
    assert set(lengths) == set(range(BLOCK - LATENTS + 1))  # every length of a prefix, from none to the longest
    assert max(starts) > LATENTS  # windows lie all over a sample, not only at its end


def test_draws_are_a_function_of_seed_and_position() -> None:
    all_at_once = collator(micro_batch_size=8)(samples(8))[0]
    one_by_one = collator(micro_batch_size=1)(samples(8))
    for row, micro in enumerate(one_by_one):
        assert real(micro, 0) == real(all_at_once, row)
    later = [{**sample, "position": sample["position"] + 8} for sample in samples(8)]  # the next pass
    others = collator(micro_batch_size=8)(later)[0], collator(micro_batch_size=8, seed=6)(samples(8))[0]
    for other in others:
        assert not torch.equal(other.inputs["input_ids"], all_at_once.inputs["input_ids"])


def test_dropped_tokens_leave_their_places_and_latents_stay() -> None:
    options = {"prefix_dropout": 0.5, "shortest_prefix": 10, "longest_prefix": 12}
    found = [micro for micro in collator(**options)(samples(40))]
    dropped = Counter()
    for micro in found:
        assert micro.inputs["input_ids"].shape == (4, 6 + LATENTS)
        for row in range(4):
            mask = micro.inputs.get("attention_mask", torch.ones(4, 6 + LATENTS))[row] != 0
            tokens, places = (micro.inputs[name][row][mask] for name in ("input_ids", "position_ids"))
            assert torch.equal(tokens - places, (tokens - places)[:1].expand(len(tokens)))  # one window, in order
            assert (places.diff() > 0).all() and (places[-LATENTS:].diff() == 1).all()
            prefix = int(places[-LATENTS])
            assert 10 <= prefix <= 12 and len(tokens) == prefix - prefix // 2 + LATENTS
            dropped.update(set(range(prefix)) - set(places.tolist()))
    assert set(range(10)) <= set(dropped)


def test_evaluations_read_the_end_of_a_sample_and_draw_nothing() -> None:
    whole = collator(prefix_dropout=0.5).micro_batch(samples(2, training=False))
    assert real(whole, 0) == list(range(1, 21)) and set(whole.inputs) == {"input_ids"}
    assert whole.targets["labels"].tolist() == [[18, 19, 20, IGNORE], [118, 119, 120, IGNORE]]
    for prefix in (0, 5):
        micro = collator(eval_prefix=prefix).micro_batch(samples(2, training=False))
        assert real(micro, 1) == list(range(121 - LATENTS - prefix, 121))
        assert torch.equal(micro.targets["labels"], whole.targets["labels"])


def test_short_samples_are_padded_on_the_left_and_keep_labels_of_their_own() -> None:
    (short,) = samples(1, 3, training=False)
    micro = collator().micro_batch([{**short, "labels": np.array([IGNORE, IGNORE, 3])}, *samples(1, training=False)])
    assert real(micro, 0) == [1, 2, 3] and micro.inputs["attention_mask"][0, -3:].all()
    assert micro.targets["labels"][0].tolist() == [IGNORE, IGNORE, 3, IGNORE]
    prompt = beginnings(micro.inputs["input_ids"], micro.targets["labels"], micro.inputs["attention_mask"])
    assert prompt["input_ids"][0][prompt["attention_mask"][0] != 0].tolist() == [1, 2]
    assert prompt["input_ids"][1].tolist() == list(range(1, 18)) and prompt["attention_mask"][1].all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"longest_prefix": 17}, "longest_prefix=17 is not from 0 to 16"),
        ({"eval_prefix": -1}, "eval_prefix=-1"),
        ({"shortest_prefix": 9, "longest_prefix": 8}, "shortest_prefix=9 is above longest_prefix=8"),
        ({"prefix_dropout": 1.0}, "prefix_dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        collator(**options)


def test_a_model_without_latents_is_refused() -> None:
    with pytest.raises(UserError, match="is for models with latents, and object has none"):
        collator(model=object())


def problems(tmp_path: Path, *overrides: str) -> list[tuple[str, str]]:
    file = Path(__file__).parents[3] / "recipes" / "tiny.yaml"
    composed = compose(str(file), [f"run.dir={tmp_path}", "model=perceiver_ar_tiny", *overrides])
    return [(one.field, one.why) for one in read_recipe(composed.raw, lambda plan: 1)[1]]


def test_a_recipe_is_checked(tmp_path: Path) -> None:
    assert tiny_recipe(tmp_path, "model=perceiver_ar_tiny").model.spec.collator.endswith("LatentCollator")
    assert problems(tmp_path, "collator=latents", "collator.longest_prefix=12") == []
    ((field, why),) = problems(tmp_path, "data.block_size=16")
    assert field == "data.block_size" and "leaves no prefix: the model's 16 latents" in why
    ((field, why),) = problems(tmp_path, "collator=causal_lm")
    assert field == "collator" and "Perceiver AR predicts only at the last ones" in why
    ((field, why),) = problems(tmp_path, "collator=latents", "collator.longest_prefix=17")
    assert field == "collator.longest_prefix" and "from 0 to 16" in why
    ((field, why),) = problems(tmp_path, "data.packing=bins")
    assert field == "data.packing" and "Perceiver AR" in why
