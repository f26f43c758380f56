"""Convert a quantised model folder (GPTQ, AWQ) to fp32 weights, for libraries that cannot read packed integers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ....models.pretrained import match_weights
from ....models.quantization.stored_quantization import stored_quantization
from .model_assets import copy_assets
from .quantised_folder import model_in
from .weight_groups import write_groups

LIMIT = 2**30
"""Most bytes of a file."""


def needs_unpacking(folder: Path) -> bool:
    """Whether the weights in ``folder`` are in GPTQ's or AWQ's layout, which transformers reads by other packages."""
    values = json.loads((folder / "config.json").read_text())
    try:
        found = stored_quantization(values, folder)
    except ValueError:  # a method that trireme does not read
        return False
    return found is not None and found.method in ("gptq", "awq")


def unpack_folder(folder: Path, out: Path) -> None:
    """Write the model in ``folder`` to ``out``, whose weights are whole and in fp32.

    Raises:
        ValueError: the weights are not quantised.
        UserError: they cannot be read, or do not fit the model.
        OSError: a file cannot be written.
    """
    found = stored_quantization(json.loads((folder / "config.json").read_text()), folder)
    if found is None:
        raise ValueError(f"{folder} is not quantised; use it as it is")
    copy_assets(folder, out, torch.float32)
    model, family = model_in(folder)
    matched = match_weights(model, folder, family, quantization=found)
    write_groups(out, ({name: entry.read()} for name, entry in matched.tensors.items()), LIMIT)
