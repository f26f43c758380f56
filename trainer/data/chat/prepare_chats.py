"""Encode all conversations of a data set as tokens once, and report which rows are cut, left out or refused.

Tokens and labels are cached as Arrow files. The cache entry is named by a hash of the rows, the tokenizer and the
options on which the tokens depend.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ....errors import Problem, UserError
from ....models.loss import IGNORE
from ..cache import built_once
from ..content_stamp import hash_json
from ..corpus_stats import digest
from ..data_config import TRAIN
from ..nested_cells import MARK
from ..prepare import progress_bars
from ..prepare_rows import row_hashes
from ..samples import MadeRows
from .chat_config import KEY
from .media_forms import FOLDER

if TYPE_CHECKING:
    from datasets import Dataset

    from .chat_encoder import ChatEncoder
    from .chat_rows import Chats

log = logging.getLogger("trireme.data")
VERSION = 4
"""Version of the encoding; a release that encodes the same rows differently increases it."""
DIGEST = "digest.txt"
"""File beside encoded rows with a digest of their tokens and labels."""
NUMBERS = ("length", "learnt", "first", "stop")
"""Numbers of a row: tokens; labels; place of the first label, and of the first stop token that is learnt (or -1)."""
PLACE = "place"
"""Column with the number of the row from which a sample was made."""
VALUES = re.compile(r"(?<=there is no file ).*|'[^']*'|\S*/\S*|\d+(\.\d+)?")
"""Paths, quoted values and numbers in reasons why rows are not usable."""
LATER = ("unusable", "too_long", "media_folder")
"""Options on which tokens do not depend: they apply to encoded rows, or tell where files are."""


def made_chats(chats: Chats, rows: Dataset, name: str, key: str) -> MadeRows:
    """The encoded rows of a set, without those that are left out.

    Raises:
        UserError: a row is not usable, or nothing of the set can be learnt.
    """
    from datasets import load_from_disk

    if not len(rows):
        return MadeRows(rows)
    options = {option: value for option, value in asdict(chats.chat).items() if option not in LATER}
    files = chats.media_files(rows)
    content = [VERSION, digest([row_hashes(rows)]), options, chats.encoder.tools, chats.encoder.made_by]
    content += [files.times] if files.times else []
    folder = chats.cache / f"chats-{hash_json([*content, chats.encoder.template.tokenizer.chat_template])[:24]}"
    with built_once(folder) as scratch:
        if scratch:
            with progress_bars():
                made = _encoded(chats, rows)
                made.save_to_disk(str(scratch / "chats"), num_proc=None)
                (scratch / DIGEST).write_text(digest_of(made))
    encoded: Any = load_from_disk(str(folder / "chats"))
    kept, notes = _kept(chats, encoded, rows, name, key)
    columns = encoded.select_columns(["input_ids", "labels", "length", "learnt"]).select(kept)
    if chats.encoder.media:  # images and audio clips stay in the rows
        columns = columns.add_column(PLACE, kept)
    lengths = np.minimum(_numbers(encoded)["length"][kept], chats.block_size)
    return MadeRows(columns, tuple(notes), lengths, (folder / DIGEST).read_text(), files)


def _encoded(chats: Chats, rows: Dataset) -> Dataset:
    from datasets import Features, List, Value

    features = Features(
        input_ids=List(Value("int32")),
        labels=List(Value("int32")),
        reason=Value("string"),
        notes=List(Value("string")),
        **{name: Value("int32") for name in NUMBERS},
    )
    processes = chats.processes if chats.processes > 1 else None
    return rows.map(
        encode_row,
        fn_kwargs={"encoder": chats.encoder},
        remove_columns=rows.column_names,
        features=features,
        num_proc=processes,
        load_from_cache_file=False,
        keep_in_memory=processes is None and len(rows) < 10_000,
        desc="encode chats",
    )


def encode_row(row: Mapping[str, Any], encoder: ChatEncoder) -> dict[str, Any]:
    """Tokens and labels of a row, or the reason why it has none."""
    try:
        found = encoder(row)
    except ValueError as error:
        none = np.zeros(0, np.int32)
        return {"input_ids": none, "labels": none, "reason": str(error), "notes": [], **dict.fromkeys(NUMBERS, 0)}
    places = np.flatnonzero(found.labels != IGNORE)
    places = places[places > 0]  # no token before the first one could predict it
    stops = [place for place in found.stops if place > 0]
    return {
        "input_ids": found.input_ids.astype(np.int32),
        "labels": found.labels.astype(np.int32),
        "reason": "",
        "notes": list(found.notes),
        "length": len(found.input_ids),
        "learnt": len(places),
        "first": int(places[0]) if len(places) else -1,
        "stop": int(stops[0]) if stops else -1,
    }


def digest_of(encoded: Dataset, names: tuple[str, ...] = ("input_ids", "labels", "length")) -> str:
    """A digest of all tokens and labels in order.

    Args:
        names: columns of lists and numbers.
    """
    columns: Any = encoded.select_columns(list(names)).with_format("arrow")
    tables = (table.column(name).combine_chunks() for table in columns.iter(10_000) for name in columns.column_names)
    return digest((each.flatten() if hasattr(each, "offsets") else each).to_numpy() for each in tables)


def _numbers(encoded: Dataset) -> dict[str, np.ndarray]:
    table: Any = encoded.select_columns(list(NUMBERS)).with_format("arrow")[:]
    return {name: table.column(name).to_numpy() for name in NUMBERS}


def _kept(chats: Chats, encoded: Dataset, rows: Dataset, name: str, key: str) -> tuple[np.ndarray, list[str]]:
    """Numbers of the rows that are kept, and lines on the others."""
    chat, most, count = chats.chat, chats.block_size, len(encoded)
    numbers, reasons = _numbers(encoded), np.array(encoded["reason"], object)
    wrong, notes = reasons != "", []
    if wrong.any():
        said = reasons_of(reasons, wrong, name)
        if chat.unusable == "refuse":
            place = int(np.flatnonzero(wrong)[0])
            why = f"{int(wrong.sum())} of {count} {name} rows are not usable: {said}; "
            why += f"row {place + 1} of the {name} rows is "
            fix = f"correct them, or leave them out: {KEY}.unusable=leave_out"
            raise UserError(Problem(key, why + short_row(rows[place]), fix))
        notes.append(f"left out {int(wrong.sum())} of {count} rows that are not usable: {said}")
    long = ~wrong & (numbers["length"] > most)
    if long.any() and chat.too_long == "refuse":
        told = f"{int(long.sum())} of {count} rows have more than data.block_size={most} tokens in the set {name}"
        fix = f"set {KEY}.too_long=cut or drop, or a larger data.block_size"
        raise UserError(Problem("data.block_size", told, fix, most))
    kept = ~wrong & ~(long if chat.too_long == "drop" else False)
    silent, behind = kept & (numbers["first"] < 0), kept & (numbers["first"] >= most)
    kept &= ~silent & ~behind
    # Each row is counted once: it is dropped, without a label, without one before it would be cut, or cut.
    told = f"rows have more than data.block_size={most} tokens"
    if chat.too_long == "drop" and long.any():
        notes.append(f"{int(long.sum())} of {count} {told} and are left out")
    elif (cut := kept & long).any():
        beyond = int((numbers["length"][cut] - most).sum())
        notes.append(f"{int(cut.sum())} of {count} {told}: they are cut, {beyond} tokens in all")
    if behind.any():
        notes.append(f"left out {int(behind.sum())} of {count} rows without a label in their {most} first tokens")
    if silent.any():
        notes.append(f"left out {int(silent.sum())} of {count} rows without a label")
    notes += [f"{times} rows: {note}" for note, times in counted_notes(encoded, kept).items()]
    stopped = kept & (numbers["stop"] >= 0) & (numbers["stop"] < most)
    if name == TRAIN:
        nearest = int(numbers["first"][behind].min()) + 1 if behind.any() else 0
        causes = {
            "not usable": wrong,
            f"dropped with more than data.block_size={most} tokens": long & ~kept & ~silent & ~behind,
            f"whose first label is behind data.block_size={most} tokens (token {nearest} or later)": behind,
            "without any label": silent,
        }
        _refuse_nothing(chats, kept, stopped, key, {cause: int(rows.sum()) for cause, rows in causes.items()})
    endless = int((kept & ~stopped).sum())
    if endless and chat.loss != "all":
        notes.append(f"{endless} of {int(kept.sum())} rows hold no label on a token that ends a turn")
    return np.flatnonzero(kept), notes


def _refuse_nothing(chats: Chats, kept: np.ndarray, stopped: np.ndarray, key: str, causes: Mapping[str, int]) -> None:
    if not kept.any():
        told = ", ".join(f"{count} {cause}" for cause, count in causes.items() if count)
        fix = f"set a larger data.block_size, or another {KEY}.loss, or correct the rows"
        raise UserError(Problem(key, f"gives no row with a label; of {len(kept)} rows: {told}", fix))
    if not stopped.any() and chats.chat.loss != "all":
        raise UserError(no_stop(chats.block_size))


def no_stop(block_size: int) -> Problem:
    """The refusal of labels without any end-of-turn token: a model trained on them would never stop writing."""
    why = "never learns the token that ends a turn, so that the model would not stop writing: the template ends turns "
    why += f"of the assistant without a special token, or data.block_size={block_size} cuts every row before that token"
    fix = f"name it as {KEY}.stop_tokens, add it by {KEY}.control_tokens, or end turns by eos_token in {KEY}.template"
    return Problem(KEY, why, fix)


def reasons_of(
    reasons: np.ndarray, wrong: np.ndarray, name: str, rows: Sequence[int] | None = None, most: int = 3
) -> str:
    """The most frequent reasons, how often each occurs, and its first row. Reasons that differ in paths, quoted values
    or numbers only are one, of which the first is shown.

    Args:
        name: of the set, whose rows are counted without repeated ones.
        rows: number of the row of each reason; None if there is one for each row.
    """
    first: dict[str, int] = {}
    kinds = np.array([VALUES.sub("", reason) for reason in reasons], object)
    for place in np.flatnonzero(wrong):
        first.setdefault(kinds[place], int(place))
    counts = Counter(kinds[wrong]).most_common()
    parts = []
    for kind, times in counts[:most]:
        alike = len({*reasons[wrong & (kinds == kind)]})
        others = " or the like" if alike > 1 else ""
        place = first[kind] if rows is None else rows[first[kind]]
        row = f"row {place + 1} of the {name} rows"
        parts.append(f"{times} since {reasons[first[kind]]}{others} (the first is {row})")
    return "; ".join(parts) + (f"; and {len(counts) - most} other reasons" if len(counts) > most else "")


def counted_notes(encoded: Dataset, kept: np.ndarray) -> Counter[str]:
    """Each note of the kept rows (column ``notes``) -> number of rows that have it."""
    table: Any = encoded.select_columns(["notes"]).with_format("arrow")[:]
    notes = table.column("notes").to_pylist()
    return Counter(note for place in np.flatnonzero(kept) for note in dict.fromkeys(notes[place] or ()))


def short_row(row: Any, most: int = 300) -> str:
    """A row as a short text for messages."""
    shown = {name: value for name, value in row.items() if value is not None and name != FOLDER}
    text = ", ".join(f"{name}: {value}" for name, value in shown.items()).replace(MARK, "")
    return text if len(text) <= most else f"{text[: most - 3]}..."
