"""Export the adapters of a checkpoint as a folder that peft can load on top of the base model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch

from ....models.hub import is_local
from ....models.low_rank import is_part
from ....models.peft_folder import CONFIG, config_values, peft_name
from ....models.stored_names import own_names
from ....parallel.strategy import Shapes
from ..source import Source
from .adapted_model import AdaptedModel
from .model_assets import copy_processors
from .weight_shards import write_shards

STEM = "adapter_model"


def stored_adapter(source: Source, adapted: AdaptedModel, ema: bool) -> tuple[dict[str, str], list[str]]:
    """The tensors of peft's file (name there -> name in the checkpoint), and the modules that were fully trained.

    A tied module is written under each of its names, since peft gives each a parameter of its own.
    """
    prefix, names, modules = "ema" if ema else "model", {}, list(adapted.plan.saved)
    tied: dict[str, list[str]] = {}
    for name, own in own_names(adapted.model).items():
        tied.setdefault(own, []).append(name)
    for name in source.shapes:
        if not name.startswith(f"{prefix}."):
            continue
        plain = name.removeprefix(f"{prefix}.")
        for alias in [plain] if is_part(plain) else tied.get(plain, [plain]):
            names[peft_name(alias)] = name
            if not is_part(plain):
                modules += [path for path in [alias.rpartition(".")[0]] if not _inside(path, modules)]
    return names, modules


def _inside(path: str, modules: list[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def write_adapter(
    source: Source, folder: Path, adapted: AdaptedModel, dtype: torch.dtype, ema: bool, check: Callable[[], None]
) -> int:
    """Write configuration, tensors and tokenizer of the adapters in ``source``; returns the number of tensors.

    Args:
        check: called between blocks; an exception that it raises ends the export.

    Raises:
        ValueError: the checkpoint cannot be read.
        OSError: a file cannot be written.
    """
    names, modules = stored_adapter(source, adapted, ema)
    entries: Shapes = {name: (source.shapes[stored][0], dtype) for name, stored in names.items()}
    write_shards(folder, [entries], [source.blocks(list(names.values()), 2**24)], check, STEM)
    plan = dataclasses.replace(adapted.plan, saved=modules)
    base, config = adapted.config.weights, adapted.config.adapter
    assert config is not None
    place = os.path.abspath(os.path.expanduser(base)) if base is not None and is_local(base) else base
    layers = [adapted.model.get_submodule(path) for path in plan.ranks]
    values = config_values(plan, config.dropout, place, adapted.config.revision, adapted.head)
    values["fan_in_fan_out"] = bool(layers) and not any(isinstance(layer, torch.nn.Linear) for layer in layers)
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    if source.assets is not None:
        copy_processors(source.assets, folder)
    return len(names)
