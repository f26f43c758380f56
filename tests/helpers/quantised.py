"""Quantised models for tests: configurations of tiny models, weight folders with and without quantisation, and a model
that bitsandbytes quantises.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from helpers.adapted import config_of, filled
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trireme.models.adapter_config import AdapterConfig
from trireme.models.model_config import ModelConfig
from trireme.models.quantization.awq_numbers import AwqNumbers
from trireme.models.quantization.gptq_numbers import GptqNumbers
from trireme.models.quantization.number_format import floats
from trireme.models.quantization.quantization_config import QuantizationConfig

LORA = AdapterConfig(rank=2)


def quantised(family: str, *, adapter: AdapterConfig = LORA, **quantization: Any) -> ModelConfig:
    return dataclasses.replace(config_of(family, adapter), quantization=QuantizationConfig(**quantization))


def from_folder(folder: Path, *, adapter: AdapterConfig = LORA, **quantization: Any) -> ModelConfig:
    return ModelConfig(weights=str(folder), adapter=adapter, quantization=QuantizationConfig(**quantization))


def whole_folder(folder: Path, family: str, **fields: Any) -> Path:
    """A folder with the unquantised weights of a tiny model."""
    filled(config_of(family, **fields)).save_pretrained(folder)
    return folder


def by_bitsandbytes(folder: Path, **options: Any) -> Any:
    """The model as transformers and bitsandbytes quantise it, in training mode: in evaluation they pack weights anew
    for a kernel in bf16."""
    found = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=BitsAndBytesConfig(**options), dtype=torch.float32
    )
    return found.train()


def write_codes(source: Path, folder: Path, method: str, tensors: dict[str, dict[str, Tensor]], **said: Any) -> Path:
    """Copy a weight folder, and replace the weights of some layers: path of a layer -> its tensors by name ending."""
    folder.mkdir()
    weights = load_file(source / "model.safetensors")
    for path, own in tensors.items():
        del weights[f"{path}.weight"]
        weights |= {f"{path}.{ending}": one.contiguous() for ending, one in own.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((source / "config.json").read_text())
    values["quantization_config"] = {"quant_method": method, **said}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def quantised_folder(source: Path, folder: Path, method: str, group_size: int = 16) -> Path:
    """A copy of an exported folder, its projections rounded to 4 bits in the layout of ``gptq`` or ``awq``."""
    form = {"gptq": GptqNumbers(4, group_size), "awq": AwqNumbers(group_size)}[method]
    names = {"packed": "qweight", "zeros": "qzeros", "groups": "g_idx", "scales": "scales"}
    tensors = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            parts = form.pack(weight)
            parts["scales"] = floats(parts["scales"], form.scale_type)
            tensors[name.removesuffix(".weight")] = {names[part]: tensor for part, tensor in parts.items()}
    write_codes(source, folder, method, tensors, bits=4, group_size=group_size)
    for file in source.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder
