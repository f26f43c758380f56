"""Tests of preference data for DPO, IPO and KTO: row formats, labels, rows that are cut, dropped or refused, and how a
sample is displayed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chats import answer, user
from helpers.preferences import JUDGED, PAIRS, corpus_of, written
from trireme.errors import UserError
from trireme.models.loss import IGNORE
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.check_data import check_data
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.preference.judged_answers import one_sided, partners_of
from trireme.trainer.data.preference.preference_form import judged_of, judged_pair, pair_of
from trireme.trainer.data.preference.preference_rows import Judged, Pairs
from trireme.trainer.data.report.views import Role
from trireme.trainer.data_report import collated_rows
from trireme.trainer.tasks.dpo import DPO
from trireme.trainer.tasks.kto import KTO

ASKED, GOOD, BAD = [user("Sky?")], [answer("Blue.")], [answer("Green.")]


def learnt(corpus: Any, index: int, side: str = "first") -> str:
    """The text of the tokens of an answer that have labels."""
    sample = corpus.rows[index]
    return corpus.tokenizer.decode(sample[f"{side}_ids"][sample[f"{side}_labels"] != IGNORE])


FORMS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "messages": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "prompt in both": {"chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    "prompt beside both": {"prompt": "Sky?", "chosen": ASKED + GOOD, "rejected": ASKED + BAD},
    "text and messages": {"prompt": "Sky?", "chosen": GOOD, "rejected": BAD},
    "Orca's": {"question": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "Alpaca's": {"instruction": "Sky?", "input": "", "chosen": "Blue.", "rejected": "Green."},
    "input": {"input": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "ShareGPT": {
        "chosen": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}],
        "rejected": [{"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Green."}],
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tokens(form: str, tmp_path: Path) -> None:
    corpus = corpus_of([FORMS["messages"]] * 8, tmp_path, DPO())
    other = tmp_path / "other"
    other.mkdir()
    found = corpus_of([FORMS[form]] * 8, other, DPO(), tokenizer=_same(corpus, tmp_path))
    for side, said in (("first", "Blue.<|im_end|>"), ("second", "Green.<|im_end|>")):
        assert found.rows[0][f"{side}_ids"].tolist() == corpus.rows[0][f"{side}_ids"].tolist()
        assert learnt(found, 0, side) == said
    whole = found.tokenizer.decode(found.rows[0]["first_ids"])
    assert whole == "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\nBlue.<|im_end|>\n"


def test_an_instruction_of_pairs_is_read_with_its_input(tmp_path: Path) -> None:
    row = {"instruction": "Name it.", "input": "The sky.", "chosen": "Blue.", "rejected": "Green."}
    corpus = corpus_of([row] * 8, tmp_path, DPO())
    assert "user\nName it.\n\nThe sky.<|im_end|>" in corpus.tokenizer.decode(corpus.rows[0]["first_ids"])


def test_columns_that_only_a_template_reads_are_reported_without_one(tmp_path: Path) -> None:
    rows = [{**FORMS["texts"], "system": f"Be brief {number}."} for number in range(8)]
    corpus = corpus_of(rows, tmp_path, DPO(), chat=None)
    assert any("the system is not read without data.chat" in note for note in corpus.rows.notes)


def _same(corpus: Any, folder: Path) -> Any:
    from trireme.trainer.data.tokenizer import TokenizerConfig

    corpus.tokenizer.save_pretrained(folder / "tokenizer")
    return TokenizerConfig(path=str(folder / "tokenizer"))


def test_only_the_answer_of_a_longer_conversation_is_learnt(tmp_path: Path) -> None:
    past = [user("Hi"), answer("Hello."), user("Sky?")]
    rows = [{"prompt": past, "chosen": GOOD, "rejected": [*BAD, user("Sure?"), answer("No.")]}] * 8
    corpus = corpus_of(rows, tmp_path, DPO())
    assert learnt(corpus, 0) == "Blue.<|im_end|>"
    assert learnt(corpus, 0, "second") == "Green.<|im_end|>No.<|im_end|>"


def test_plain_texts_are_tokenized_as_in_generation(tmp_path: Path) -> None:
    corpus = corpus_of(PAIRS, tmp_path, DPO(), chat=None)
    tokenizer, sample = corpus.tokenizer, corpus.rows[5]
    ids = tokenizer(PAIRS[5]["prompt"], add_special_tokens=False)["input_ids"]
    ids += tokenizer(PAIRS[5]["chosen"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert sample["first_ids"].tolist() == ids
    assert learnt(corpus, 5) == PAIRS[5]["chosen"] + tokenizer.eos_token


def test_plain_texts_that_begin_alike_need_no_prompt(tmp_path: Path) -> None:
    rows = [{name: f"{row['prompt']} {row[name]}" for name in ("chosen", "rejected")} for row in PAIRS]
    corpus = corpus_of(rows, tmp_path, DPO(), chat=None)
    sample = corpus.rows[4]
    places = [int(np.flatnonzero(sample[f"{side}_labels"] != IGNORE)[0]) for side in ("first", "second")]
    assert places[0] == places[1] > 0
    assert sample["first_ids"][: places[0]].tolist() == sample["second_ids"][: places[0]].tolist()
    assert sample["first_ids"][places[0]] != sample["second_ids"][places[0]]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "a", "chosen": GOOD, "rejected": "b"}, "one of its answers is a text"),
        ({"chosen": ASKED + GOOD, "rejected": [user("Sea?"), *BAD]}, "do not begin with the same message"),
        ({"chosen": ASKED, "rejected": ASKED + BAD}, "the beginning of the other"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "nothing in the column rejected"),
        ({"prompt": "a", "chosen": {"b": 1}, "rejected": "c"}, "neither a text nor a list of messages"),
    ],
)
def test_a_row_without_two_answers_says_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pair_of(row)


def test_labels_are_read_as_data_sets_write_them() -> None:
    row = {"prompt": "a", "completion": "b"}
    assert [judged_of({**row, "label": label})[1] for label in (True, 1, "true", "1", 1.0)] == [True] * 5
    assert [judged_of({**row, "label": label})[1] for label in (False, 0, "False", "-1")] == [False] * 4
    with pytest.raises(ValueError, match="label None is neither true nor false"):
        judged_of(row)
    (chosen, good), (rejected, bad) = judged_pair({"chosen": "Sky? Blue", "rejected": "Sky? Big"})
    assert (
        (chosen["prompt"], chosen["completion"], rejected["completion"]) == ("Sky? B", "lue", "ig") and good and not bad
    )


def test_a_text_that_looks_like_messages_stays_a_text(tmp_path: Path) -> None:
    rows = [{"prompt": f"Sky {n}?", "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD)} for n in range(9)]
    corpus = corpus_of(rows, tmp_path, DPO())
    assert learnt(corpus, 0) == json.dumps(GOOD) + "<|im_end|>"
    assert any("reads like a list of messages" in note for note in corpus.rows.notes)


def test_pairs_of_two_equal_answers_are_left_out_and_others_refused(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Say it.", "chosen": "it", "rejected": "it"}]
    corpus = corpus_of(rows, tmp_path, DPO())
    assert len(corpus.rows) == len(PAIRS) and any("answers are the same" in note for note in corpus.rows.notes)
    wrong = [*PAIRS, {"prompt": [{"content": "no role"}], "chosen": "a", "rejected": "b"}]
    with pytest.raises(UserError, match=r"(?s)has no role.*unusable=leave_out"):
        corpus_of(wrong, tmp_path, DPO())
    kept = corpus_of(wrong, tmp_path, DPO(), chat=ChatConfig(unusable="leave_out"))
    assert len(kept.rows) == len(PAIRS) and "left out 1 of 41 rows" in " ".join(kept.describe("train").notes)


@pytest.mark.parametrize("task", [DPO(), KTO()], ids=["dpo", "kto"])
@pytest.mark.parametrize("lacks", [{"chosen": None}, {"rejected": ""}, {"chosen": " \n"}], ids=repr)
def test_a_pair_that_lacks_an_answer_is_not_usable(task: Any, lacks: dict[str, Any], tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Say it.", "chosen": "it", "rejected": "no", **lacks}]
    name = "completion" if task.estimates and lacks == {"chosen": None} else next(iter(lacks))  # a single answer, then
    with pytest.raises(UserError, match=f"(?s)nothing in the column {name}.*unusable=leave_out"):
        corpus_of(rows, tmp_path, task)
    kept = corpus_of(rows, tmp_path, task, chat=ChatConfig(unusable="leave_out"))
    assert len(kept.rows) == len(PAIRS) * (2 if task.estimates else 1)
    assert "left out 1 of" in " ".join(kept.describe("train").notes)


def test_kto_learns_no_answer_as_good_and_bad(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Say it.", "chosen": "it", "rejected": "it "}]
    corpus = corpus_of(rows, tmp_path, KTO())
    assert len(corpus.rows) == 80 and any("answers are the same" in note for note in corpus.rows.notes)


@pytest.mark.parametrize(("task", "samples"), [(DPO(), 1), (KTO(), 2)], ids=["dpo", "kto"])
def test_pairs_that_are_equal_after_the_cut_are_left_out(task: Any, samples: int, tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Say it.", "chosen": "word " * 90 + "a", "rejected": "word " * 90 + "b"}]
    corpus = corpus_of(rows, tmp_path, task)
    assert len(corpus.rows) == len(PAIRS) * samples
    assert any(f"left out {samples} of" in note and "in the first 64 tokens" in note for note in corpus.rows.notes)
    differ = [*PAIRS, {"prompt": "Say it.", "chosen": "word " * 90, "rejected": "b" + "word " * 90}]
    assert len(corpus_of(differ, tmp_path, task).rows) == 41 * samples


def test_long_texts_are_cut_dropped_or_refused(tmp_path: Path) -> None:
    rows = [*PAIRS, {"prompt": "Say it.", "chosen": "word " * 90, "rejected": "b"}]
    cut = corpus_of(rows, tmp_path, DPO())
    assert len(cut.rows) == 41 and len(cut.rows[40]["first_ids"]) == 64 and cut.rows.lengths.max() == 64
    assert any("more than data.block_size=64" in note for note in cut.rows.notes)
    assert len(corpus_of(rows, tmp_path, DPO(), chat=ChatConfig(too_long="drop")).rows) == 40
    with pytest.raises(UserError, match=r"data.block_size"):
        corpus_of(rows, tmp_path, DPO(), chat=None, samples={"too_long": "refuse"})
    long = [*PAIRS, {"prompt": "word " * 90, "chosen": "a", "rejected": "b"}]
    left = corpus_of(long, tmp_path, DPO())
    assert len(left.rows) == 40 and any("begins behind 64 tokens" in note for note in left.rows.notes)


def test_kto_reads_each_answer_beside_one_to_another_prompt(tmp_path: Path) -> None:
    corpus = corpus_of(JUDGED, tmp_path, KTO())
    assert learnt(corpus, 3) == JUDGED[3]["completion"] + "<|im_end|>"
    for index in (0, 7, 39):
        prompt = corpus.tokenizer.decode(corpus.rows[index]["second_ids"])
        assert f"Say {index}." in prompt
        assert learnt(corpus, index, "second") == learnt(corpus, (index + 1) % 40)
    assert [corpus.rows[index]["desirable"] for index in range(4)] == [False, True, True, False]
    pairs = corpus_of(PAIRS, tmp_path, KTO())
    assert len(pairs.rows) == 80 and sum(pairs.rows[index]["desirable"] for index in range(80)) == 40
    assert "Say 1." not in pairs.tokenizer.decode(pairs.rows[0]["first_ids"])
    assert learnt(pairs, 0, "second") == learnt(pairs, 2)  # the next one of the same prompt is passed over


def test_partners_answer_other_prompts() -> None:
    assert partners_of(["a", "a", "b", "c", "c"]).tolist() == [2, 2, 3, 0, 0]
    assert partners_of(["a", "b", "a", "a"]).tolist() == [1, 2, 1, 1]


def test_kto_needs_both_labels_and_several_prompts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="calls all of its 40 answers desirable"):
        corpus_of([{**row, "label": True} for row in JUDGED], tmp_path, KTO())
    with pytest.raises(UserError, match="answers to one prompt only"):
        corpus_of([{**row, "prompt": "Say."} for row in JUDGED], tmp_path, KTO())
    many = [{**row, "label": number % 10 > 0} for number, row in enumerate(JUDGED)]
    notes = corpus_of(many, tmp_path, KTO()).rows.notes
    assert any("36 answers are desirable, 4 are not" in note and "undesirable_weight=9" in note for note in notes)


def test_steps_without_both_labels_are_told() -> None:
    rare = np.arange(100) < 97
    assert "78% of the steps have answers of one label only" in one_sided(rare, 8)
    assert one_sided(rare, 512) == "" and one_sided(np.arange(100) < 50, 8) == ""


def test_columns_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = written([{"question": "a", "chosen": "b", "worse": "c"}] * 9, tmp_path / "rows.jsonl")
    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(path)], "nested": "text"}
    config = DataConfig(source=source, chat=ChatConfig())
    (problem,) = check_data(config, None, True, Pairs.columns)
    assert "gives no column rejected" in problem.why and "data.columns.rejected=COLUMN" in problem.fix
    mapped = DataConfig(source=source, chat=ChatConfig(), columns={"prompt": "question", "rejected": "worse"})
    assert check_data(mapped, None, True, Pairs.columns) == []
    (problem,) = check_data(config, None, True, Judged.columns)
    assert "prompt, completion and label, or chosen and rejected" in problem.why
    with pytest.raises(UserError, match="cannot be set beside"):
        corpus_of(PAIRS, tmp_path, DPO(), samples={"too_long": "drop"})
    with pytest.raises(UserError, match="always learns from the answers"):
        corpus_of(PAIRS, tmp_path, DPO(), chat=ChatConfig(loss="all"))


@pytest.mark.parametrize("packing", [True, "bins"])
def test_a_displayed_sample_shows_both_texts_with_their_labels(tmp_path: Path, packing: Any) -> None:
    corpus = corpus_of(PAIRS[:9], tmp_path, DPO(), packing=packing, block_size=96)
    batch = next(corpus.train_batches({}, 0, 1))
    shown = next(iter(collated_rows(corpus, batch.micro_batches[0], iter(batch.samples))))
    views = corpus.views(shown)
    sides = [name for name in views if name.startswith("chosen")]
    assert len(views) == 2 * len(sides) and (len(sides) > 1) == (packing == "bins")
    for name, view in views.items():
        marked = "".join(piece.text for piece in view.pieces if piece.role is Role.LEARNT)
        read = "".join(piece.text for piece in view.pieces if piece.role is not Role.LEARNT)
        assert marked.endswith("<|im_end|>") and "Say" in read and "Say" not in marked
        assert marked.startswith("no") == name.startswith("rejected")
