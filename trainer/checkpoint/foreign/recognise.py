"""Recognise a checkpoint of another tool by the files at a path, and open it with the reader for its format."""

from __future__ import annotations

from pathlib import Path

from ....models.weight_files import weight_files
from ..source import Source
from .dcp import DcpFolder
from .deepspeed import DeepSpeedFolder, tag_folder
from .hf_trainer import TrainerFolder, WeightsFolder, newest_checkpoint


def foreign_source(path: Path) -> Source | None:
    """A reader for the folder or file at ``path``; None if its format is not known.

    Raises:
        ValueError: it is recognised and cannot be read.
    """
    checkpoint = newest_checkpoint(path)
    if checkpoint is not None:
        return TrainerFolder(checkpoint)
    if tag_folder(path) is not None:
        return DeepSpeedFolder(path)
    if (path / ".metadata").is_file():
        return DcpFolder(path)
    if (path.is_file() and path.suffix in (".safetensors", ".bin", ".pt", ".pth")) or weight_files(path):
        return WeightsFolder(path)
    return None
