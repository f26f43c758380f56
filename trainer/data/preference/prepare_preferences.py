"""Tokenize preference data (pairs of answers, or labelled answers), cache the tokens, and report which rows are cut,
left out or refused.

Tokens and labels are cached as Arrow files. The cache entry is named by a hash of the rows, the tokenizer and the
options on which the tokens depend. A sample has two texts: the chosen and the rejected answer. For KTO these are an
answer labelled good or bad, and an answer to another prompt, from which the KL divergence is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from .answer_encoder import PARTS, SAME
from .encoded_samples import KEPT, encoded_sample, mapped, unusable
from .judged_answers import balance, judged_samples, refuse_one_prompt

if TYPE_CHECKING:
    from datasets import Dataset

    from .preference_rows import Pairs

VERSION = 3
"""Raised when other tokens or labels are made of the same rows."""


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
                made = judged_samples(samples, rows) if samples.judged else _paired(samples, rows)
                made.save_to_disk(str(scratch / "samples"), num_proc=None)
                (scratch / DIGEST).write_text(digest_of(made, (*PARTS, "length")))
    encoded: Any = load_from_disk(str(folder / "samples"))
    kept, notes = _kept(samples, encoded, rows, name, key)
    if samples.judged and name == TRAIN:
        notes += balance(np.asarray(encoded["desirable"])[kept], key)
        refuse_one_prompt(encoded.select(kept), key)
    lengths = np.minimum(np.asarray(encoded["length"])[kept], samples.block_size)
    print_ = digest([kept, lengths]) + (folder / DIGEST).read_text()
    return MadeRows(encoded.select_columns(list(KEPT)).select(kept), tuple(notes), lengths, print_)


def _content(samples: Pairs, rows: Dataset) -> list[Any]:
    """Everything that determines the tokens."""
    options = None if samples.chat is None else {k: v for k, v in asdict(samples.chat).items() if k not in LATER}
    tokenizer = samples.processor
    about = [VERSION, type(samples).__qualname__, digest([row_hashes(rows)]), options, samples.encoder.tools]
    return [*about, content_hash(tokenizer), tokenizer.chat_template if samples.chat is not None else None]


def _paired(samples: Pairs, rows: Dataset) -> Dataset:
    return mapped(rows, _encode_pair, {"samples": samples}, samples.processes)


def _encode_pair(row: Mapping[str, Any], number: int, samples: Pairs) -> dict[str, Any]:
    """Tokens and labels of both answers of a row, or the reason why it has none."""
    try:
        (chosen, _), (rejected, _) = samples.answers(row)
        return encoded_sample(*samples.encoder.pair(chosen, rejected), number)
    except ValueError as error:
        return unusable(str(error), number)


def _kept(samples: Pairs, encoded: Any, rows: Dataset, name: str, key: str) -> tuple[np.ndarray, list[str]]:
    """Numbers of the samples that are kept, and lines on the others."""
    most, count = samples.block_size, len(encoded)
    length, first = (np.asarray(encoded[column]) for column in ("length", "first"))
    usable, notes = _usable(samples, encoded, rows, name, key)
    long = usable & (length > most)
    told = f"samples have a text of more than data.block_size={most} tokens"
    if long.any() and samples.too_long == "refuse":
        fix = f"set {_options(samples)}too_long=cut or drop, or a larger data.block_size"
        raise UserError(Problem("data.block_size", f"{int(long.sum())} of {count} {told} in the set {name}", fix, most))
    kept = usable & ~(long if samples.too_long == "drop" else False)
    without = kept & ((first < 0) | (first >= most))
    kept &= ~without
    alike = _same_when_cut(samples, encoded, kept & long)
    kept &= ~alike
    if samples.too_long == "drop" and long.any():
        notes.append(f"{int(long.sum())} of {count} {told} and are left out")
    elif (cut := kept & long).any():
        notes.append(f"{int(cut.sum())} of {count} {told}: it is cut at the end")
    if without.any():
        why = f"whose answer begins behind {most} tokens, or is empty"
        notes.append(f"left out {int(without.sum())} of {count} samples {why}")
    if alike.any():
        why = f"whose two answers are the same in the first {most} tokens"
        notes.append(f"left out {int(alike.sum())} of {count} samples {why}")
    notes += [f"{times} samples: {note}" for note, times in counted_notes(encoded, kept).items()]
    if name == TRAIN and not kept.any():
        raise UserError(Problem(key, "gives no sample with an answer", "see data.block_size and the rows"))
    return np.flatnonzero(kept), notes


def _usable(samples: Pairs, encoded: Any, rows: Dataset, name: str, key: str) -> tuple[np.ndarray, list[str]]:
    """Which samples are usable, and lines on the others.

    Raises:
        UserError: some are not, and the recipe does not leave them out.
    """
    count, reasons = len(encoded), np.array(encoded["reason"], object)
    same = reasons == SAME
    wrong = (reasons != "") & ~same
    notes = [f"left out {int(same.sum())} of {count} rows, since {SAME}"] if same.any() else []
    if wrong.any():
        said = reasons_of(reasons, wrong, name, encoded["row"])
        if samples.unusable == "refuse":
            row = int(encoded["row"][int(np.flatnonzero(wrong)[0])])
            why = f"{int(wrong.sum())} of {count} {name} rows are not usable: {said}; "
            why += f"row {row + 1} of the {name} rows is "
            fix = f"correct them, or leave them out: {_options(samples)}unusable=leave_out"
            raise UserError(Problem(key, why + short_row(rows[row]), fix))
        notes.append(f"left out {int(wrong.sum())} of {count} rows that are not usable: {said}")
    return ~wrong & ~same, notes


def _same_when_cut(samples: Pairs, encoded: Any, long: np.ndarray) -> np.ndarray:
    """Which of the cut samples belong to a pair whose answers differ only after the cut."""
    found = np.zeros(len(encoded), bool)
    if samples.judged:  # the two answers of a pair follow each other
        rows = np.asarray(encoded["row"])
        pairs = [(at, at + 1) for at in np.flatnonzero(long[:-1] & long[1:] & (rows[:-1] == rows[1:]))]
    else:
        pairs = [(at, at) for at in np.flatnonzero(long)]
    sides = ("first_ids", "first_ids" if samples.judged else "second_ids")
    for one, other in pairs:
        texts = [encoded[int(at)][side][: samples.block_size] for at, side in zip((one, other), sides, strict=True)]
        found[[one, other]] = list(texts[0]) == list(texts[1])
    return found


def _options(samples: Pairs) -> str:
    """Where the options of these rows stand in a recipe."""
    return f"{KEY}." if samples.chat is not None else "data.samples."
