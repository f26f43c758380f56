"""What a checkpoint looks like on disk, and how to know that it is whole.

::

    checkpoints/step_00000100/
        tensors/*.safetensors   torch distributed checkpoint: model.<name>, optim.<name>.<state>, ema.<name>
        state.json              trainer, callbacks, loss scale
        recipe.yaml             the resolved recipe that wrote it
        model/                  config.json and tokenizer, as transformers reads them
        deepspeed/              with checkpoint.deepspeed: DeepSpeed's own files, for its tools
        manifest.json           written last: step, plan, and size and SHA-256 of every file

A checkpoint is written under a hidden name and renamed when complete, so a folder with a manifest is complete; the
digests tell whether it is still what was written. Nothing that is read back is pickled (DeepSpeed's own files are, and
stay unread here).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

FORMAT = 1
TENSORS, STATE, RECIPE, MODEL, MANIFEST = "tensors", "state.json", "recipe.yaml", "model", "manifest.json"
NATIVE = "deepspeed"


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def complete_checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints under ``root``, newest first."""
    folders = [path for path in root.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(
        (path for path in folders if (path / MANIFEST).is_file()), key=lambda path: int(path.name[5:]), reverse=True
    )


def checkpoints_at(path: Path) -> list[Path]:
    """``path`` as a checkpoint, or the newest first of a run folder or its ``checkpoints``."""
    if (path / MANIFEST).is_file():
        return [path]
    return complete_checkpoints(path) or complete_checkpoints(path / "checkpoints")


def files_of(folder: Path) -> list[str]:
    """Relative paths of everything in a checkpoint but its manifest, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found if path.name != MANIFEST)


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises ValueError when there is none, or it cannot be read."""
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None


def verify(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every file is what was written."""
    try:
        manifest = read_manifest(folder)
        if manifest["format"] > FORMAT:
            return f"was written by a newer version (format {manifest['format']})"
        for name, written in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != written["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {written['bytes']}"
            if describe_file(path) != written:
                return f"{name} is damaged (its SHA-256 has changed)"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read: {error}"
    return None


def flush(path: Path) -> None:
    """Ask the system to put a file's, or a folder's, contents on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
