"""Compare a model's configuration with a checkpoint's config.json, in the fields that change the model's outputs."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .json_file import read_json
from .model_config import NOT_CONFIGURATION

FILE = "config.json"
NOT_COMPUTED = frozenset(
    (
        *NOT_CONFIGURATION,
        *("compression_config", "id2label", "label2id", "num_labels", "problem_type", "tokenizer_class"),
        *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "initializer_range", "model_type"),
    )
)
"""Fields that do not change the outputs, or that follow from the data; ``_counts`` leaves out special tokens too."""


def other_fields(now: Any, folder: Path, without: Collection[str] = ()) -> list[str]:
    """Names of the fields of the configuration ``now`` that have other values in the config.json in ``folder``.

    Args:
        without: names of fields, also of inner configurations, that are not compared.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        saved = read_json(folder / FILE)
        if saved == json.loads(now.to_json_string(use_diff=True)):
            return []
        then = type(now)(
            **{name: value for name, value in saved.items() if name not in ("model_type", *NOT_CONFIGURATION)}
        )
    except (OSError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"its {FILE} cannot be read ({error})") from None
    whole = [_computed(json.loads(each.to_json_string(use_diff=False)), without) for each in (then, now)]
    return [name for name in {**whole[0], **whole[1]} if whole[0].get(name) != whole[1].get(name)]


def _computed(values: Any, without: Collection[str]) -> Any:
    """The fields of a configuration, and of those inside of it, that change the outputs."""
    if not isinstance(values, dict):
        return values
    return {name: _computed(value, without) for name, value in values.items() if _counts(name) and name not in without}


def _counts(name: str) -> bool:
    special = name.endswith(("_token_id", "_token_ids", "_token_index"))
    return name not in NOT_COMPUTED and not name.startswith("_") and not special
