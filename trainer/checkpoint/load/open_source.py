"""Open the checkpoint at a path for reading, whether trireme or another tool wrote it."""

from __future__ import annotations

from pathlib import Path

from ....errors import Problem
from ..foreign.recognise import foreign_source
from ..layout import MANIFEST
from ..source import Source
from .own_checkpoint import Checkpoint

NONE_THERE = (
    "is not a complete checkpoint, nor a run folder that has one, nor a checkpoint of DeepSpeed, transformers.Trainer "
    "or torch's distributed checkpoint"
)


def open_source(path: Path) -> Source:
    """The training state at ``path``, which ``find`` or ``usable_checkpoint`` has chosen.

    Raises:
        ValueError: the folder or file has no known format, or cannot be read.
    """
    if (path / MANIFEST).is_file():
        return Checkpoint(path)
    source = foreign_source(path)
    if source is None:
        raise ValueError(NONE_THERE)
    return source


def adapter_problem(path: Path, field: str) -> Problem | None:
    """The refusal of an adapter of peft where a checkpoint is asked for; None for anything else.

    Args:
        field: the key or option that the user wrote.
    """
    if not (path / "adapter_config.json").is_file():
        return None
    fix = f"begin with it: adapter=continued model.adapter.path={path}, with its base as model.weights"
    return Problem(field, "is an adapter as peft writes it, not a checkpoint", fix, str(path))
