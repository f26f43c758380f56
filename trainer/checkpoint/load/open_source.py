"""Open the state at a path: a checkpoint of trireme, or of somebody else."""

from __future__ import annotations

from pathlib import Path

from ..foreign.recognise import foreign_source
from ..layout import MANIFEST
from ..source import Source
from .own_checkpoint import Checkpoint

NONE_THERE = (
    "is no complete checkpoint, nor a run folder that holds one, nor one of DeepSpeed, transformers.Trainer or torch's "
    "distributed checkpoint"
)


def open_source(path: Path) -> Source:
    """The state at ``path``, which ``store.find`` or ``usable_checkpoint`` has chosen: trireme's, or of somebody else.

    Raises:
        ValueError: nobody is known to write such a folder or file, or it cannot be read.
    """
    if (path / MANIFEST).is_file():
        return Checkpoint(path)
    source = foreign_source(path)
    if source is None:
        raise ValueError(NONE_THERE)
    return source
