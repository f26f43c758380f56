"""Tests of how ``trireme data`` shows a collated sample: trained tokens, masked tokens, padding, and exact text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trireme.models.facts import Facts
from trireme.trainer.data.report.sample_views import sample_views
from trireme.trainer.data.report.set_facts import label_counts, label_facts, spread
from trireme.trainer.data.report.token_views import token_view
from trireme.trainer.data.report.view_html import stored_view, view_html
from trireme.trainer.data.report.views import AudioView, Collated, ImageView, Numbers, Role, Text, Tokens, as_view
from trireme.trainer.data.tokenizer import TokenizerConfig, load_or_train

TEXTS = ["The ship sails to Piraeus, slowly.", "Rowers row; the drum beats \u00e9ven\u00fcng \u2013 and on.", "To sea!"]


def tokenizer(kind: str, tmp_path: Any) -> Any:
    config = TokenizerConfig(kind=kind, vocab_size=280 if kind == "bpe" else 120)
    return load_or_train(config, lambda: iter(TEXTS * 4), kind, str(tmp_path))


def pieces(view: Tokens) -> list[tuple[str, str, str | None]]:
    return [(piece.text, piece.role.value, piece.hides) for piece in view.pieces]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_pieces_joined_are_the_decoded_text(kind: str, tmp_path: Any) -> None:
    """This holds wherever the learnt part begins."""
    made = tokenizer(kind, tmp_path)
    for text in TEXTS:
        ids = made(text)["input_ids"]
        whole = made.decode(ids, clean_up_tokenization_spaces=False)
        for first in range(1, len(ids)):
            labels = [-100] * first + ids[first:]
            view = token_view(made, ids, labels)
            assert [piece.role for piece in view.pieces] == [Role.IGNORED, Role.LEARNT]
            joined = "".join(piece.text for piece in view.pieces)
            assert joined == whole or "\ufffd" in joined  # half of a character stands alone
            assert view.count == len(ids)


def test_shifted_labels_stand_at_their_tokens(tmp_path: Any) -> None:
    made = tokenizer("bpe", tmp_path)
    ids = made("ship sails")["input_ids"]
    shifted = [-100, *ids[2:], -100]  # the first two tokens are not learnt
    view = token_view(made, ids, shifted, shifted=True, mask=[1] * len(ids))
    assert [role for _, role, _ in pieces(view)] == ["ignored", "learnt"] and not any(
        hides for *_, hides in pieces(view)
    )
    behind = token_view(made, ids, [-100] * (len(ids) - 1) + [ids[0]], shifted=True)
    assert behind.pieces[-1].role is Role.LEARNT and behind.count == len(ids)


def test_masks_hide_and_padding_is_counted(tmp_path: Any) -> None:
    made = tokenizer("wordpiece", tmp_path)
    ids = made("the ship sails", add_special_tokens=False)["input_ids"]
    masked, labels = [*ids], [-100] * len(ids)
    masked[1], labels[1], labels[2] = made.mask_token_id, ids[1], ids[2]
    pad = [made.pad_token_id] * 4
    view = token_view(made, masked + pad, labels + [-100] * 4, mask=[1] * len(ids) + [0] * 4)
    found = pieces(view)
    assert found[1][0].strip() == "[MASK]" and found[1][1:] == ("learnt", made.decode([ids[1]]))
    assert found[2][1:] == ("learnt", None)  # it is to be predicted, though no mask hides it
    assert found[-1] == (" [PAD]", "padding", None) and view.pieces[-1].count == 4


def test_names_of_labels_and_numbers_that_are_no_tokens(tmp_path: Any) -> None:
    made = tokenizer("wordpiece", tmp_path)
    view = token_view(made, [5, 6, 10_000], [1, -100, 0], names=["O", "PLACE"])
    assert [piece.hides for piece in view.pieces] == ["PLACE", None, "O"] and "<10000>" in view.pieces[2].text


def collated(inputs: dict[str, Any], targets: dict[str, Any], head: str = "") -> Collated:
    return Collated(inputs, targets, 0, 0, head)


def test_kinds_of_inputs_are_known_by_their_names() -> None:
    images = SimpleNamespace(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    facts = Facts(labels=("cat", "dog"), problem="single_label_classification")
    pixels = np.full((3, 2, 2), 2.0, np.float32)
    views = sample_views(collated({"pixel_values": pixels}, {"labels": np.asarray(1)}), images, None, facts)
    image, label = views["pixel_values"], views["labels"]
    assert isinstance(image, ImageView) and image.pixels.shape == (2, 2, 3) and image.pixels.max() == 255
    assert label == Text("dog")
    extractor = SimpleNamespace(sampling_rate=8000)
    inputs = {"input_values": np.array([0.0, 2.0, -4.0, 9.0], np.float32), "attention_mask": np.array([1, 1, 1, 0])}
    clip = sample_views(collated(inputs, {}), extractor, None, Facts())["input_values"]
    assert isinstance(clip, AudioView) and clip.samples.tolist() == [0.0, 0.5, -1.0] and clip.rate == 8000
    several = Facts(labels=("a", "b", "c"), problem="multi_label_classification")
    assert sample_views(collated({}, {"labels": np.array([1.0, 0.0, 1.0])}), None, None, several) == {
        "labels": Text("a, c")
    }
    number = Facts(labels=("value",), problem="regression")
    assert sample_views(collated({}, {"labels": np.asarray(2.5)}), None, None, number) == {"labels": Text("2.5")}
    other = sample_views(collated({"graph": {"edges": np.zeros((2, 3))}}, {}), None, None, Facts())["graph.edges"]
    assert other == Numbers((2, 3), "float64", (0.0,) * 6, (0.0, 0.0))


def test_targets_of_a_decoder_are_a_text_of_their_own(tmp_path: Any) -> None:
    """They are shown apart, although padding makes both equally long."""
    made = tokenizer("wordpiece", tmp_path)
    ids = np.array(made("the ship", add_special_tokens=False)["input_ids"])
    sample = collated({"input_ids": ids, "decoder_input_ids": ids}, {"labels": ids[::-1].copy()}, "seq2seq_lm")
    views = sample_views(sample, made, made, Facts())
    assert list(views) == ["input_ids", "decoder_input_ids", "labels"]
    assert views["input_ids"].pieces[0].role is Role.READ and views["labels"].pieces[0].role is Role.LEARNT


def test_values_of_a_custom_display_become_views() -> None:
    from PIL import Image

    assert as_view("text") == Text("text") and as_view(3) == Text("3")
    assert as_view(Image.new("L", (3, 2))).pixels.shape == (2, 3, 3)
    assert isinstance(as_view(np.zeros((2, 2), np.uint8)), ImageView)
    assert as_view(np.zeros(0, np.float32)) == Numbers((0,), "float32")


def test_views_that_earlier_versions_stored_are_shown() -> None:
    """Their kinds were ``picture`` and ``sound``."""
    image = stored_view(ImageView(np.zeros((2, 2), np.uint8), "a sail"))
    audio = stored_view(AudioView(np.zeros(8, np.float32), 8000, "a drum"))
    assert (image["kind"], audio["kind"]) == ("image", "audio")
    assert '<img alt=""' in view_html(image) and "<audio controls" in view_html(audio)
    assert view_html({**image, "kind": "picture"}) == view_html(image)
    assert view_html({**audio, "kind": "sound"}) == view_html(audio)


def test_distributions_and_counts() -> None:
    (found,) = spread("tokens", range(1, 101), limit=90)
    assert (found.least, found.median, found.high, found.most, found.cut) == (1, 50, 95, 100, 10)
    assert spread("tokens", []) == [] and spread("x", [float("nan")]) == []
    counts = label_counts({0: 3, 1: 2, -1: 1, None: 4}, ["a", "b", "c"], by_number=True)
    assert [(one.name, one.count, one.known) for one in counts] == [
        ("a", 3, True), ("b", 2, True), ("c", 0, True), ("-1", 1, False), ("none", 4, False)
    ]  # fmt: skip
    rows = Dataset.from_dict({"label": [["a"], ["a", "b"], [], ["c"]]})
    facts = Facts(labels=("a", "b"), problem="multi_label_classification")
    assert [(one.name, one.count) for one in label_facts(rows, facts)[0]] == [("a", 2), ("b", 1), ("c", 1)]
    tagged = Dataset.from_dict({"tags": [["b", "b"], ["a"]]})
    assert [(one.name, one.count) for one in label_facts(tagged, facts, "tags")[0]] == [("a", 1), ("b", 2)]
    numbers = Dataset.from_dict({"label": [1.5, 2.5, None]})
    none, (values,) = label_facts(numbers, Facts(labels=("value",), problem="regression"))
    assert none == [] and (values.least, values.most, values.counted) == (1.5, 2.5, 2)
    assert label_facts(Dataset.from_dict({"text": ["a"]}), Facts()) == ([], [])
    named = label_counts({"none": 2, None: 1}, ["none"], by_number=False)
    assert [(one.name, one.count, one.known) for one in named] == [("none", 2, True), ("none", 1, False)]
