"""Define the columns in which tokenized preference samples are cached, and tokenize rows in parallel processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .answer_encoder import PARTS, SIDES, Encoded, learnt_places

if TYPE_CHECKING:
    from datasets import Dataset

NUMBERS = ("length", "learnt", "first", "row")
"""Numbers of a sample: tokens of its longer text; labels of both texts; position of the first label, the later one of
both texts, or -1 if a text has none; number of its row."""
KEPT = (*PARTS, "length", "learnt", "desirable")
"""Columns from which samples are made."""


def encoded_sample(first: Encoded, second: Encoded, row: int, desirable: bool = True) -> dict[str, Any]:
    """Columns of a sample of two texts."""
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


def unusable(reason: str, row: int) -> dict[str, Any]:
    """Columns in place of a sample that is not usable."""
    nothing = dict.fromkeys(PARTS, np.zeros(0, np.int32))
    zeros = dict.fromkeys(NUMBERS, 0)
    return {**nothing, **zeros, "desirable": False, "reason": reason, "notes": [], "row": row}


def mapped(rows: Dataset, function: Any, arguments: dict[str, Any], processes: int) -> Dataset:
    """The encoded samples that ``function`` makes from rows, in up to ``processes`` processes."""
    from datasets import Features, List, Value

    features = Features(
        **{name: List(Value("int32")) for name in PARTS},
        desirable=Value("bool"),
        reason=Value("string"),
        notes=List(Value("string")),
        **{name: Value("int32") for name in NUMBERS},
    )
    several = processes if processes > 1 else None
    return rows.map(
        function,
        with_indices=True,
        fn_kwargs=arguments,
        remove_columns=rows.column_names,
        features=features,
        num_proc=several,
        load_from_cache_file=False,
        keep_in_memory=several is None and len(rows) < 10_000,
        desc="encode preferences",
    )
