"""What a base model says beside its weights, and what goes along into checkpoints and exports of its fine-tuning.

A base may end its answers with several tokens and ask for a temperature (``generation_config.json``), and has files of
its processors. The tokenizer knows one id of each kind; it adds to what the base says and never replaces it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .model_config import ModelConfig, weights_folder

GENERATION = "generation_config.json"
PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files that a tokenizer, which saves its own chat template, does not save."""

Ids = int | list[int] | None


def joined(base: Ids, own: int | None) -> Ids:
    """The ids that end a text: those of the base, and the tokenizer's, with which documents end while training."""
    ids = [base] if isinstance(base, int) else list(base or [])
    ids += [own] if own is not None and own not in ids else []
    return ids[0] if len(ids) == 1 else ids or None


def generation_values(model: ModelConfig, eos: int | None) -> dict[str, Any] | None:
    """The base's ``generation_config.json`` with the tokenizer's end of text among its own; None if there is none."""
    if model.weights is None:
        return None
    try:
        values = json.loads((weights_folder(model) / GENERATION).read_text())
    except (OSError, ValueError):  # none, or one that transformers cannot read either
        return None
    return {**values, "eos_token_id": joined(values.get("eos_token_id"), eos)} if isinstance(values, dict) else None


def write_base_assets(model: ModelConfig, eos: int | None, folder: Path) -> None:
    """Write into ``folder`` what the base of ``model`` says of generation, and the files of its processors.

    Raises:
        OSError: the folder cannot be written.
    """
    values = generation_values(model, eos)
    if values is not None:
        (folder / GENERATION).write_text(json.dumps(values, indent=2) + "\n")
    for name in PROCESSORS if model.weights is not None else ():
        file = weights_folder(model) / name
        if file.is_file() and not (folder / name).exists():
            (folder / name).write_bytes(file.read_bytes())
