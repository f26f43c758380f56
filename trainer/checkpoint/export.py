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
from pathlib import Path

import torch

from ... import Problem, UserError
from .source import Source, open_source
from .tensors import Shapes, split_by_bytes
from .weights import GROUP_BYTES, read_in_groups, stored_weights, usable_checkpoint

log = logging.getLogger("trireme.export")
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
    source = open_source(usable_checkpoint(Path(checkpoint).expanduser(), "CHECKPOINT"))
    assets = source.assets
    if assets is None:
        raise UserError(
            Problem("CHECKPOINT", "holds no config.json", "put the model's config.json beside it", checkpoint)
        )
    target = Path(out).expanduser()
    shapes, sources = stored_weights(source, ema)
    kept = {name: _target_dtype(stored, DTYPES[dtype]) for name, (_, stored) in shapes.items()}
    sizes = {name: shape.numel() * kept[name].itemsize for name, (shape, _) in shapes.items()}
    shards = split_by_bytes(sizes, _bytes(max_shard_size))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(Problem("OUT", "exists and is not empty", "name a new folder", out))
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(assets, partial)
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
    log.info("exported %s to %s (%s, %d tensors, %d file(s))", source.path, target, dtype, len(shapes), len(shards))
    return target


def _write_shards(
    source: Source,
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
            tensors = read_in_groups(source, shapes, names, sources, GROUP_BYTES)
            for name, tensor in zip(names, tensors, strict=True):
                raw = tensor.to(kept[name]).contiguous().flatten().view(torch.uint8)
                stream.write(raw.numpy().data)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, names in zip(files, shards, strict=True) for name in names},
        }
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


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
