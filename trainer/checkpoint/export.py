"""From a checkpoint to a folder that ``transformers`` loads: safetensors, sharded, streamed tensor by tensor.

Safetensors files are a length, a JSON header and raw bytes, so each tensor goes from the checkpoint to its place in the
output without the model ever being in memory: the peak is one group of tensors (``GROUP_BYTES``, or the largest
tensor).
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ... import Problem, UserError
from .layout import MODEL, TENSORS, checkpoints_at, verify
from .tensors import Shapes, read_tensors, split_by_bytes, tensor_shapes

log = logging.getLogger("trireme.export")
GROUP_BYTES = 256 * 2**20
"""Tensors are read from the checkpoint in groups of at most this size."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in a safetensors header."""


def export(checkpoint: str, out: str, dtype: str = "fp32", ema: bool = False, max_shard_size: str = "5GB") -> Path:
    """Write model, configuration and tokenizer of ``checkpoint`` (a checkpoint or run folder) to ``out``.

    Args:
        dtype: fp32, bf16 or fp16.
        ema: export the averaged weights.
        max_shard_size: largest weight file, as ``500MB`` or ``5GB``.

    Raises:
        UserError: no usable checkpoint, no averaged weights, or ``out`` holds something already.
    """
    source = _usable(Path(checkpoint).expanduser())
    target = Path(out).expanduser()
    shapes, sources = _exported(source, ema)
    kept = {name: _target_dtype(stored, DTYPES[dtype]) for name, (_, stored) in shapes.items()}
    sizes = {name: shape.numel() * kept[name].itemsize for name, (shape, _) in shapes.items()}
    shards = split_by_bytes(sizes, _bytes(max_shard_size))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(Problem("OUT", "exists and is not empty", "name a new folder", out))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source / MODEL, partial)
        _set_dtype(partial / "config.json", DTYPES[dtype])
        _write_shards(source, partial, shapes, sources, shards, kept)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(
            Problem("OUT", f"cannot be written: {error.strerror or error}", "free space or choose another folder", out)
        ) from None
    log.info("exported %s to %s (%s, %d tensors, %d file(s))", source, target, dtype, len(shapes), len(shards))
    return target


def _usable(path: Path) -> Path:
    reason = "is no complete checkpoint, nor a run folder that holds one"
    for folder in checkpoints_at(path):
        reason = verify(folder)
        if reason is None:
            return folder
        log.warning("checkpoint %s %s; it is not used", folder, reason)
    raise UserError(
        Problem("CHECKPOINT", reason, "name a run folder, or a folder such as RUN/checkpoints/step_00000100", str(path))
    )


def _exported(source: Path, ema: bool) -> tuple[Shapes, dict[str, str]]:
    """By plain name: shape and type of what is exported, and its name in the checkpoint.

    Averaged parameters come with the model's own buffers.
    """
    shapes = tensor_shapes(source / TENSORS)
    model = {name.removeprefix("model."): entry for name, entry in shapes.items() if name.startswith("model.")}
    averaged = {name.removeprefix("ema.") for name in shapes if name.startswith("ema.")} if ema else set()
    if ema and not averaged:
        raise UserError(
            Problem("--ema", "the checkpoint has no averaged weights", "train with `ema=average`, or leave --ema out")
        )
    return model, {name: f"ema.{name}" if name in averaged else f"model.{name}" for name in model}


def _write_shards(
    source: Path,
    out: Path,
    shapes: Shapes,
    sources: dict[str, str],
    shards: list[list[str]],
    kept: dict[str, torch.dtype],
) -> None:
    files = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    )
    total = 0
    for file, names in zip(files, shards, strict=True):
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            shape = shapes[name][0]
            end = offset + shape.numel() * kept[name].itemsize
            header[name] = {"dtype": DTYPE_CODES[kept[name]], "shape": list(shape), "data_offsets": [offset, end]}  # type: ignore[assignment]
            offset = end
        total += offset
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        with (out / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(encoded)) + encoded)
            for name, tensor in zip(names, _read_in_groups(source / TENSORS, shapes, names, sources), strict=True):
                raw = tensor.to(kept[name]).contiguous().flatten().view(torch.uint8)
                stream.write(raw.numpy().data)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _read_in_groups(folder: Path, shapes: Shapes, names: list[str], sources: dict[str, str]) -> Iterator[Tensor]:
    """Tensors in the order of ``names``; one group is in memory at a time."""
    sizes = {name: shapes[name][0].numel() * shapes[name][1].itemsize for name in names}
    for group in split_by_bytes(sizes, GROUP_BYTES):
        tensors = {sources[name]: torch.empty(shapes[name][0], dtype=shapes[name][1]) for name in group}
        read_tensors(tensors, folder, distributed=False)
        while tensors:  # hand each tensor over and let go of it
            yield tensors.pop(next(iter(tensors)))


def _target_dtype(stored: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    return wanted if stored.is_floating_point else stored


def _set_dtype(config: Path, dtype: torch.dtype) -> None:
    values = json.loads(config.read_text())
    values["dtype"] = str(dtype).removeprefix("torch.")
    values["use_cache"] = True  # off while training
    config.write_text(json.dumps(values, indent=2) + "\n")


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", size.strip().upper())
    if not match:
        raise UserError(Problem("--max-shard-size", "is not a size", "write it as 500MB or 5GB", size))
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))
