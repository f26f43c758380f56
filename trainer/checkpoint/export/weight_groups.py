"""Write an export's safetensors files when tensor sizes are not known in advance: each file as soon as it is full."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def write_groups(folder: Path, groups: Iterator[dict[str, Tensor]], limit: int) -> None:
    """Write tensors to numbered safetensors files of at most ``limit`` bytes, with an index if there are several.

    Args:
        groups: tensors by name; the tensors of a group, such as those of a layer, stay in one file.

    Raises:
        OSError: a file cannot be written.
    """
    files: list[tuple[Path, list[str]]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def flush() -> None:
        if held:
            path = folder / f"{len(files)}.part"
            save_file({name: one.contiguous() for name, one in held.items()}, path, {"format": "pt"})
            files.append((path, list(held)))
            held.clear()

    for group in groups:
        size = sum(one.nbytes for one in group.values())
        if held and sum(one.nbytes for one in held.values()) + size > limit:
            flush()
        held.update(group)
        total += size
    flush()
    count, index = len(files), {}
    for number, (path, names) in enumerate(files, start=1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        path.rename(folder / name)
        index |= dict.fromkeys(names, name)
    if count > 1:
        values = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(values, indent=2))
