"""Make tokens of the preferences of a set once, and say of each row why it is cut, left out or refused.

Tokens and labels lie in the cache as Arrow files, named by the rows, the tokenizer and the options that they depend on.
A sample has two texts: the chosen and the rejected answer, or an answer and the one to another prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import Problem, UserError
from ..cache import built_once
from ..chat.chat_config import KEY
from ..chat.prepare_chats import DIGEST, LATER, counted_notes, digest_of, reasons_of, short_row
from ..content_stamp import hash_json
from ..corpus_stats import digest
from ..data_config import TRAIN
from ..prepare import progress_bars
from ..prepare_rows import row_hashes
from ..samples import MadeRows
from ..tokenizer import content_hash
from .answer_encoder import PARTS, SAME, SIDES, AnswerEncoder, Encoded, learnt_places

if TYPE_CHECKING:
    from datasets import Dataset

    from .preference_rows import Pairs

VERSION = 1
"""Raised when other tokens or labels are made of the same rows."""
NUMBERS = ("length", "learnt", "first", "row")
"""Numbers of a sample: tokens of its longer text; labels of both; the later place of the two first labels, or -1 if a
text has none; the row that it is made of."""
KEPT = (*PARTS, "length", "learnt", "desirable")


def made_preferences(samples: Pairs, rows: Dataset, name: str, key: str) -> MadeRows:
    """The encoded samples of a set, without those that are left out.

    Raises:
        UserError: a row is not usable, or nothing of the set can be learnt.
    """
    from datasets import load_from_disk

    if not len(rows):
        return MadeRows(rows)
    folder = samples.cache / f"preferences-{hash_json(_content(samples, rows))[:24]}"
    with built_once(folder) as scratch:
        if scratch:
            with progress_bars():
                made = _judged(samples, rows) if samples.judged else _paired(samples, rows)
                made.save_to_disk(str(scratch / "samples"), num_proc=None)
                (scratch / DIGEST).write_text(digest_of(made, (*PARTS, "length")))
    encoded: Any = load_from_disk(str(folder / "samples"))
    kept, notes = _kept(samples, encoded, rows, name, key)
    if samples.judged and name == TRAIN:
        notes += _balance(np.asarray(encoded["desirable"])[kept], key)
        _refuse_one_prompt(encoded.select(kept), key)
    lengths = np.minimum(np.asarray(encoded["length"])[kept], samples.block_size)
    print_ = digest([kept, lengths]) + (folder / DIGEST).read_text()
    return MadeRows(encoded.select_columns(list(KEPT)).select(kept), tuple(notes), lengths, print_)


def _content(samples: Pairs, rows: Dataset) -> list[Any]:
    """All that the tokens follow from."""
    options = None if samples.chat is None else {k: v for k, v in asdict(samples.chat).items() if k not in LATER}
    tokenizer = samples.processor
    about = [VERSION, type(samples).__qualname__, digest([row_hashes(rows)]), options, samples.encoder.tools]
    return [*about, content_hash(tokenizer), tokenizer.chat_template if samples.chat is not None else None]


# -- pairs ----------------------------------------------------------------------------------------------------------


def _paired(samples: Pairs, rows: Dataset) -> Dataset:
    return _mapped(samples, rows, _encode_pair, {"samples": samples})


def _encode_pair(row: Mapping[str, Any], number: int, samples: Pairs) -> dict[str, Any]:
    """Tokens and labels of both answers of a row, or the reason why it has none."""
    try:
        (chosen, _), (rejected, _) = samples.answers(row)
        return _sample(*samples.encoder.pair(chosen, rejected), number)
    except ValueError as error:
        return _without(str(error), number)


# -- single answers -------------------------------------------------------------------------------------------------


def _judged(samples: Pairs, rows: Dataset) -> Dataset:
    """Each answer, beside the answer to the next other prompt: a function of the rows alone, so that neither the order
    of the samples nor a plan changes it."""
    from datasets import Dataset as Rows

    found = list(_answers(samples, rows))
    usable = [place for place, each in enumerate(found) if not each["reason"]]
    partners = _partners([found[place]["prompt"] for place in usable])
    for at, place in enumerate(usable):
        found[place]["other"] = found[usable[partners[at]]]["completion"]
    whole = Rows.from_list([{**each, "other": each.get("other", "")} for each in found])
    return _mapped(samples, whole, _encode_judged, {"encoder": samples.encoder})


def _answers(samples: Pairs, rows: Dataset) -> Iterator[dict[str, Any]]:
    """The answers of all rows: prompt, answer and what stands beside them as JSON."""
    for number, row in enumerate(rows):
        try:
            for answer, good in samples.answers(row):  # type: ignore[arg-type]
                beside = {name: value for name, value in answer.items() if name not in ("prompt", "completion")}
                texts = [json.dumps(each) for each in (answer["prompt"], answer["completion"], beside)]
                parts = dict(zip(("prompt", "completion", "beside"), texts, strict=True))
                yield {**parts, "good": good, "row": number, "reason": ""}
        except ValueError as error:
            nothing = dict.fromkeys(("prompt", "completion", "beside"), "")
            yield {**nothing, "good": False, "row": number, "reason": str(error)}


def _partners(prompts: list[str]) -> np.ndarray:
    """For each answer the number of the next one, in a circle, to another prompt; 0 if there is no other prompt."""
    partners = np.zeros(len(prompts), np.int64)
    nearest = 0
    for place in reversed(range(2 * len(prompts))):  # twice, so that the last ones find theirs at the beginning
        at, behind = place % len(prompts), (place + 1) % len(prompts)
        nearest = behind if prompts[behind] != prompts[at] else nearest
        partners[at] = nearest
    return partners


def _encode_judged(row: Mapping[str, Any], _: int, encoder: AnswerEncoder) -> dict[str, Any]:
    if row["reason"]:
        return _without(row["reason"], row["row"])
    prompt, completion, beside, other = (json.loads(row[name]) for name in ("prompt", "completion", "beside", "other"))
    try:
        own, another = (
            encoder.answer({**beside, "prompt": prompt, "completion": each}) for each in (completion, other)
        )
    except ValueError as error:
        return _without(str(error), row["row"])
    return _sample(own, another, row["row"], bool(row["good"]))


def _refuse_one_prompt(encoded: Dataset, key: str) -> None:
    prompts = set()
    for sample in encoded.select_columns(["first_ids", "first_labels"]):
        first = int(learnt_places(np.asarray(sample["first_labels"]))[0])  # type: ignore[index]
        prompts.add(tuple(sample["first_ids"][:first]))  # type: ignore[index]
        if len(prompts) > 1:
            return
    why = "gives answers to one prompt only, and KTO compares prompts with answers to others"
    raise UserError(Problem(key, why, "give rows with different prompts, or choose task=dpo"))


def _balance(desirable: np.ndarray, key: str) -> list[str]:
    """A line on how many answers are desirable.

    Raises:
        UserError: all are, or none is.
    """
    good, bad = int(desirable.sum()), int((~desirable).sum())
    if len(desirable) and not (good and bad):
        why = f"calls {'all' if good else 'none'} of its {len(desirable)} answers desirable; KTO learns from both kinds"
        raise UserError(
            Problem(key, why, "give rows of both labels, or fine-tune on the good ones: task=causal_lm data=chat")
        )
    advice = ""
    if good and not 1 <= good / bad <= 4 / 3:
        weight = f"undesirable_weight={good / bad:.3g}" if good > bad else f"desirable_weight={bad / good:.3g}"
        advice = f"; the paper advises weights that balance them, such as task.{weight}"
    return [f"{good} answers are desirable, {bad} are not{advice}"]


# -- both -----------------------------------------------------------------------------------------------------------


def _sample(first: Encoded, second: Encoded, row: int, desirable: bool = True) -> dict[str, Any]:
    places = [learnt_places(each.labels) for each in (first, second)]
    notes = dict.fromkeys((*first.notes, *second.notes))
    if not first.ends:
        notes["the answer holds no token that ends it"] = None
    found: dict[str, Any] = {}
    for side, each in zip(SIDES, (first, second), strict=True):
        found |= {f"{side}_ids": each.ids.astype(np.int32), f"{side}_labels": each.labels.astype(np.int32)}
    return {
        **found,
        "desirable": desirable,
        "reason": "",
        "notes": list(notes),
        "length": max(len(first.ids), len(second.ids)),
        "learnt": sum(map(len, places)),
        "first": max(int(of[0]) for of in places) if all(map(len, places)) else -1,
        "row": row,
    }


def _without(reason: str, row: int) -> dict[str, Any]:
    nothing = dict.fromkeys(PARTS, np.zeros(0, np.int32))
    zeros = dict.fromkeys(NUMBERS, 0)
    return {**nothing, **zeros, "desirable": False, "reason": reason, "notes": [], "row": row}


def _mapped(samples: Pairs, rows: Dataset, function: Any, arguments: dict[str, Any]) -> Dataset:
    from datasets import Features, List, Value

    features = Features(
        **{name: List(Value("int32")) for name in PARTS},
        desirable=Value("bool"),
        reason=Value("string"),
        notes=List(Value("string")),
        **{name: Value("int32") for name in NUMBERS},
    )
    processes = samples.processes if samples.processes > 1 else None
    return rows.map(
        function,
        with_indices=True,
        fn_kwargs=arguments,
        remove_columns=rows.column_names,
        features=features,
        num_proc=processes,
        load_from_cache_file=False,
        keep_in_memory=processes is None and len(rows) < 10_000,
        desc="encode preferences",
    )


def _kept(samples: Pairs, encoded: Any, rows: Dataset, name: str, key: str) -> tuple[np.ndarray, list[str]]:
    """Numbers of the samples that are kept, and lines on the others."""
    most, count = samples.block_size, len(encoded)
    option = f"{KEY}." if samples.chat is not None else "data.samples."
    reasons = np.array(encoded["reason"], object)
    length, first, row = (np.asarray(encoded[column]) for column in ("length", "first", "row"))
    same = reasons == SAME
    wrong, notes = (reasons != "") & ~same, []
    if same.any():
        notes.append(f"left out {int(same.sum())} of {count} rows, since {SAME}")
    if wrong.any():
        said = reasons_of(reasons, wrong)
        if samples.unusable == "refuse":
            place = int(np.flatnonzero(wrong)[0])
            why = f"{int(wrong.sum())} of {count} {name} rows are not usable: {said}; row {row[place] + 1} is "
            fix = f"correct them, or leave them out: {option}unusable=leave_out"
            raise UserError(Problem(key, why + short_row(rows[int(row[place])]), fix))
        notes.append(f"left out {int(wrong.sum())} of {count} rows that are not usable: {said}")
    long = ~wrong & ~same & (length > most)
    if long.any():
        told = f"{int(long.sum())} of {count} samples have a text of more than data.block_size={most} tokens"
        if samples.too_long == "refuse":
            fix = f"set {option}too_long=cut or drop, or a larger data.block_size"
            raise UserError(Problem("data.block_size", f"{told} in the set {name}", fix, most))
        notes.append(f"{told} and are left out" if samples.too_long == "drop" else f"{told}: it is cut at the end")
    kept = ~wrong & ~same & ~(long if samples.too_long == "drop" else False)
    without = kept & ((first < 0) | (first >= most))
    if without.any():
        notes.append(
            f"left out {int(without.sum())} of {count} samples whose answer begins behind {most} tokens, or is empty"
        )
    kept &= ~without
    notes += [f"{times} samples: {note}" for note, times in counted_notes(encoded, kept).items()]
    if name == TRAIN and not kept.any():
        raise UserError(Problem(key, "gives no sample with an answer", "see data.block_size and the rows"))
    return np.flatnonzero(kept), notes
