"""Copy what an exported model needs beside its weights: configuration, generation settings, tokenizer, processors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from ....models.adapter_plan import ADAPTER
from ....models.check_model import QUANTISATION_FILES
from ...base_identity import BASE
from .expected_tensors import model_class

KINDS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
"""Suffixes of the files of configurations and tokenizers, so that weights and optimizer state are not copied."""
TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer with several chat templates."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Files of processors, of which a tokenizer's folder has none."""
NOT_OURS = (
    *("trainer_state.json", "manifest.json", "state.json", "all_results.json", "train_results.json"),
    *(
        "adapter_config.json",
        ADAPTER,
        BASE,
        "reference.json",
        *QUANTISATION_FILES,
    ),  # describe other weights than the exported ones
)
"""Files that are not copied, though their suffix is in ``KINDS``."""


def copy_assets(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Copy the assets from ``folder`` to ``out``, and set the type of the weights in config.json.

    Raises:
        OSError: a file cannot be read or written.
    """
    for file in sorted(folder.iterdir()):
        index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in KINDS and not index and file.name not in NOT_OURS:
            shutil.copyfile(file, out / file.name)
    _copy_templates(folder, out)
    values = json.loads((out / "config.json").read_text())
    # The first is an older name of dtype; the others describe the weights before the export.
    for untrue in ("torch_dtype", "quantization_config", "compression_config"):
        values.pop(untrue, None)
    values["dtype"] = str(dtype).removeprefix("torch.")
    values["use_cache"] = True  # training had switched it off
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    if not (out / "generation_config.json").exists():
        _write_generation_config(out)


def copy_processors(folder: Path, out: Path) -> None:
    """Copy the files of tokenizer and processors alone, for an adapter, whose base has the configuration.

    Raises:
        OSError: a file cannot be read or written.
    """
    others = ("config.json", "generation_config.json", *NOT_OURS)
    for file in sorted(folder.iterdir()):
        index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in KINDS and not index and file.name not in others:
            shutil.copyfile(file, out / file.name)
    _copy_templates(folder, out)


def _copy_templates(folder: Path, out: Path) -> None:
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        (out / TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, out / TEMPLATES / file.name)


def _write_generation_config(folder: Path) -> None:
    """Write the generation settings of config.json to a file of their own, as ``save_pretrained`` does."""
    from transformers import GenerationConfig

    config, built = model_class(folder)
    if built is not None and built.can_generate():
        GenerationConfig.from_model_config(config).save_pretrained(folder)
