"""What stands beside the weights of an exported model: configuration, generation settings, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from ....models.check_model import QUANTISATION_FILES
from .expected_tensors import model_class

KINDS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".py"}
"""Files of configurations and tokenizers; weights and optimizers of a folder that holds these too stay behind."""
TEMPLATES = "additional_chat_templates"
"""Folder of a tokenizer that has several."""
NOT_OURS = (
    *("trainer_state.json", "manifest.json", "state.json", "all_results.json", "train_results.json"),
    *("adapter_config.json", *QUANTISATION_FILES),  # of other weights than those that are written
)


def copy_assets(folder: Path, out: Path, dtype: torch.dtype) -> None:
    """Copy them from ``folder``, with the type of the weights in config.json.

    Raises:
        OSError: a file cannot be read or written.
    """
    for file in sorted(folder.iterdir()):
        index = file.name.endswith(".index.json")
        if file.is_file() and file.suffix in KINDS and not index and file.name not in NOT_OURS:
            shutil.copyfile(file, out / file.name)
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        (out / TEMPLATES).mkdir(exist_ok=True)
        shutil.copyfile(file, out / TEMPLATES / file.name)
    values = json.loads((out / "config.json").read_text())
    for untrue in ("torch_dtype", "quantization_config", "compression_config"):  # the older name; of stored weights
        values.pop(untrue, None)
    values["dtype"] = str(dtype).removeprefix("torch.")
    values["use_cache"] = True  # off while training
    (out / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    if not (out / "generation_config.json").exists():
        _write_generation_config(out)


def _write_generation_config(folder: Path) -> None:
    """As ``save_pretrained`` would: what config.json says of writing text."""
    from transformers import GenerationConfig

    config, built = model_class(folder)
    if built is not None and built.can_generate():
        GenerationConfig.from_model_config(config).save_pretrained(folder)
