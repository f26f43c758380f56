"""Copy a base model's generation settings and processor files into the checkpoints and exports of models that are
fine-tuned from it.

The files are ``generation_config.json`` and the files of the model's processors. ``generation_config.json`` may list
several tokens that end a text, but a tokenizer knows only one. The tokenizer's id, and that of the token which ends an
answer of a chat, are therefore added to the base model's ids and do not replace them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .json_file import read_json
from .model_config import ModelConfig, weights_folder

GENERATION = "generation_config.json"
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files of processors, copied as they are; the tokenizer saves its own files, chat template included."""

Ids = int | list[int] | None


def end_of_text_ids(base: Ids, own: Sequence[int]) -> Ids:
    """All ids that end a text: the base's, and those that end documents or answers in training."""
    ids = [base] if isinstance(base, int) else list(base or [])
    ids = list(dict.fromkeys([*ids, *own]))
    return ids[0] if len(ids) == 1 else ids or None


def generation_values(model: ModelConfig, ends: Sequence[int]) -> dict[str, Any] | None:
    """The base's ``generation_config.json`` with further ids that end a text; None without such a file."""
    if model.weights is None:
        return None
    try:
        values = read_json(weights_folder(model) / GENERATION)
    except (OSError, ValueError):  # the file is absent, or transformers cannot read it either
        return None
    if not isinstance(values, dict):
        return None
    return {**values, "eos_token_id": end_of_text_ids(values.get("eos_token_id"), ends)}


def write_base_assets(model: ModelConfig, ends: Sequence[int], folder: Path) -> None:
    """Write the generation settings and processor files of the base of ``model`` into ``folder``.

    Args:
        ends: ids that end a text beside those of the base.

    Raises:
        OSError: the folder cannot be written.
    """
    values = generation_values(model, ends)
    if values is not None:
        (folder / GENERATION).write_text(json.dumps(values, indent=2) + "\n")
    for name in PROCESSORS if model.weights is not None else ():
        file = weights_folder(model) / name
        if file.is_file() and not (folder / name).exists():
            (folder / name).write_bytes(file.read_bytes())
