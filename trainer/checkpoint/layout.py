"""Define the files of a checkpoint folder, list checkpoints, and check that they are complete and unchanged.

::

    checkpoints/step_00000100/
        tensors/*.safetensors   torch distributed checkpoint: model.<name>, optim.<name>.<state>, ema.<name>
        state.json              trainer, callbacks, loss scale
        recipe.yaml             the resolved recipe that wrote it
        model/                  config.json and tokenizer, as transformers reads them
        deepspeed/              with checkpoint.deepspeed: DeepSpeed's own files, for its tools
        manifest.json           written last: step, plan, and size and XXH3-128 of every file; "not_finite" says what
                                was not finite, weights or loss; "nodes", without a common disk, names the node that
                                holds a file, for each file that not all nodes hold

A checkpoint is written under a hidden name and renamed when complete, so a folder with a manifest is complete. Digests
tell whether files have changed since; they cost a tenth of the work of SHA-256. They protect against accidents, not
against forgery, since anyone who can change a file can also change the manifest. Files that are read back contain no
pickles; DeepSpeed's own files do, and are not read here.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

import xxhash

from ...models.json_file import read_json

FORMAT = 2
TENSORS, STATE, RECIPE, MODEL, MANIFEST = "tensors", "state.json", "recipe.yaml", "model", "manifest.json"
NATIVE = "deepspeed"
READ_BYTES, WRITE_BYTES = 2**20, 2**18
Digest = xxhash.xxh3_128


def step_folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 for any other name."""
    return int(path.name[5:]) if re.fullmatch(r"step_\d+", path.name) else -1


def checkpoints_under(root: Path) -> list[Path]:
    """Folders of checkpoints under ``root``, newest first.

    A folder gets such a name only when it is complete, so one without a manifest has been damaged since.
    """
    folders = [path for path in root.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def complete_checkpoints(root: Path) -> list[Path]:
    """Checkpoints under ``root`` that have a manifest, newest first."""
    return [path for path in checkpoints_under(root) if (path / MANIFEST).is_file()]


def checkpoints_at(path: Path) -> list[Path]:
    """The checkpoint at ``path``, or those of the run folder or ``checkpoints`` folder there, newest first.

    Damaged ones are included.
    """
    if (path / MANIFEST).is_file():
        return [path]
    return checkpoints_under(path) or checkpoints_under(path / "checkpoints")


def files_of(folder: Path) -> list[str]:
    """Relative paths of all files in a checkpoint but its manifest, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found if path.name != MANIFEST)


def describe_file(path: Path) -> dict[str, Any]:
    """Size in bytes and digest of a file."""
    digest, buffer, size = Digest(), memoryview(bytearray(READ_BYTES)), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size += count
    return manifest_entry(size, digest)


def manifest_entry(size: int, digest: Digest) -> dict[str, Any]:
    """The description of a file in a manifest."""
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: it is missing or cannot be read.
    """
    try:
        return read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read ({error})") from None


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, which is the last file of a checkpoint, and flush it and all folders to the disk."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in (folder / MANIFEST, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        flush(path)


def metric_of(folder: Path) -> float | None:
    """The metric that a checkpoint was saved with; None if it has none, or one that is not finite."""
    try:
        metric = float(read_manifest(folder)["metric"])
    except (ValueError, KeyError, TypeError):  # a damaged manifest is reported by ``damages``
        return None
    return metric if math.isfinite(metric) else None


def not_finite(folder: Path) -> str | None:
    """Description of what was not finite when a checkpoint was written, which then must not be resumed; else None."""
    try:
        return read_manifest(folder).get("not_finite") or None
    except (ValueError, AttributeError):  # a damaged manifest is reported by ``damages``
        return None


def sound_first(folders: Iterable[Path]) -> list[Path]:
    """``folders`` in the same order, except that those with weights or losses that are not finite come last."""
    return sorted(folders, key=lambda folder: not_finite(folder) is not None)


def verify(folder: Path, contents: bool = True, only: Collection[str] | None = None) -> str | None:
    """The first damage of a checkpoint; None if every file is unchanged. Arguments as for ``damages``."""
    return next(damages(folder, contents, only=only), None)


def other_format(manifest: dict[str, Any]) -> str | None:
    """Why this version cannot read the checkpoint of ``manifest``; None if it can."""
    if manifest["format"] == FORMAT:
        return None
    age = "a newer" if manifest["format"] > FORMAT else "an older"
    return f"was written by {age} version (format {manifest['format']})"


def damages(
    folder: Path,
    digests: bool = True,
    checked: Callable[[int], None] = lambda size: None,
    only: Collection[str] | None = None,
) -> Iterator[str]:
    """All damages of a checkpoint, one after the other.

    Args:
        digests: read every file; else only names and sizes are compared.
        checked: called with the size of each file after its check.
        only: relative paths of the files to check; None checks all.
    """
    if not (folder / MANIFEST).is_file():
        yield f"{MANIFEST} is missing"
        return
    try:
        manifest = read_manifest(folder)
        if reason := other_format(manifest):
            yield reason
            return
        for name, written in manifest["files"].items():
            if only is not None and name not in only:
                continue
            reason = file_damage(folder, name, written, digests)
            checked(written["bytes"])
            if reason:
                node = manifest.get("nodes", {}).get(name)
                yield reason + (f" (node {node} wrote it: copy its folder over this one)" if node else "")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        yield f"cannot be read: {error}"


def file_damage(folder: Path, name: str, written: dict[str, Any], digest: bool = True) -> str | None:
    """The damage of one file, which the manifest describes as ``written``; None if it is unchanged."""
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != written["bytes"]:
        return f"{name} has {path.stat().st_size} bytes instead of {written['bytes']}"
    if digest and describe_file(path) != written:
        return f"{name} is damaged (its digest has changed)"
    return None


def write_all(file: RawIOBase, data: bytes | memoryview) -> None:
    """Write ``data`` in chunks of ``WRITE_BYTES``.

    Writes of many megabytes were measured to take five to ten times as long, because the kernel looks for large pages
    for its cache.
    """
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view[:WRITE_BYTES]) :]


def swap_names(one: Path, other: Path) -> bool:
    """Swap the names of two folders in one step, by Linux's ``renameat2``; False if the system cannot do so."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def flush(path: Path) -> None:
    """Make the system write the contents of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
