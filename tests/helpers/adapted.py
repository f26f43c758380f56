"""Build tiny models in a single process, with or without LoRA or DoRA adapters, and write folders of tiny pretrained
models for adapters to start from.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from helpers import zero
from helpers.recipes import tiny_recipe
from torch import nn
from transformers import PreTrainedModel
from trireme.models.adapter_config import AdapterConfig
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

SIZES = {family: {**sizes, "vocab_size": 64} for family, sizes in zero.SIZES.items()}


def config_of(family: str, adapter: AdapterConfig | None = None, **fields: Any) -> ModelConfig:
    return ModelConfig(family, {**SIZES[family], **fields}, adapter=adapter)


def on_meta(config: ModelConfig, head: str = "causal_lm", labels: tuple[str, ...] = ()) -> PreTrainedModel:
    return build_on_meta(config, head, Facts(labels=labels))


def filled(config: ModelConfig, seed: int = 0) -> PreTrainedModel:
    """The model with its initial weights, in evaluation mode."""
    model = on_meta(config)
    materialise(model, torch.device("cpu"), weight_source(config, copy.deepcopy(model), seed))
    return model.eval()


def small_bases(folder: Path) -> dict[str, Path]:
    """Folders of small pretrained models with their tokenizers, made in ``folder``."""
    for family in ("llama", "gpt2"):
        train(tiny_recipe(folder / "run" / family, f"model={family}_tiny", "trainer.max_steps=2"))
        export(str(folder / "run" / family), str(folder / family))
    return {family: folder / family for family in ("llama", "gpt2")}


@torch.no_grad()
def shaken(model: nn.Module, seed: int = 5) -> None:
    """Move the trained parameters away from their first values, as training does."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(24).reshape(2, 12)).logits
