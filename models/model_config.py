"""The ``model`` part of a recipe, and what can be checked of it before any process starts."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import Problem
from .family import ModelFamily, families


@dataclass
class ModelConfig:
    """Which model is trained, and where its weights come from."""

    family: str
    """One of ``trireme models``."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's transformers configuration. With ``weights``, these override the folder's config.json."""
    weights: str | None = None
    """Folder with config.json and safetensors (or ``pytorch_model*.bin``, which are loaded without running anything in
    them), one such file beside its config.json, or a hub id ``owner/name``; null starts from random weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that are not trained: names, or patterns such as ``model.embed_tokens.*``."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """Attention kernel, by transformers' names; null takes the family's best that needs nothing installed."""

    def __post_init__(self) -> None:
        if self.family not in families():
            near = difflib.get_close_matches(self.family, families(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(families())}"
            raise ValueError(f"family={self.family!r} is not known; {hint}")
        if self.attention is not None and self.attention not in self.spec.attention:
            offered = " or ".join(self.spec.attention)
            raise ValueError(f"attention={self.attention!r} is not offered by {self.spec.title}; use {offered}")

    @property
    def spec(self) -> ModelFamily:
        return families()[self.family]

    @property
    def kernel(self) -> str:
        """The attention kernel that is used."""
        return self.attention or self.spec.attention[0]


def check_model(model: ModelConfig, block_size: int) -> list[Problem]:
    """Everything about the model that can be refused before launch: configuration fields, types, sequence length."""
    if is_local(model.weights):
        problems = _check_files(Path(model.weights or "").expanduser(), model.spec)
        if problems:
            return problems
    problems = _unknown_fields(model)
    if problems:
        return problems
    if model.weights is not None and not is_local(model.weights):
        return (
            []
            if _looks_like_hub_id(model.weights)
            else [
                Problem(
                    "model.weights",
                    "no such folder or file, and not a hub id (owner/name)",
                    "give a folder with config.json and *.safetensors",
                    model.weights,
                )
            ]
        )
    try:
        config = hf_config(model)
    except Exception as error:  # transformers raises several kinds of its own for wrong field types and values
        return [Problem("model.config", " ".join(str(error).split()), "change the fields named in this message")]
    limit = getattr(config, model.spec.context, None)
    if limit is not None and block_size > limit:
        return [
            Problem(
                "data.block_size",
                f"is longer than the model's {model.spec.context} ({limit})",
                f"use at most {limit}, or raise model.config.{model.spec.context}",
                block_size,
            )
        ]
    return []


def hf_config(model: ModelConfig) -> Any:
    """The family's transformers configuration, from the recipe or from the folder of ``weights``.

    Fields that the recipe names win over the folder's.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    # Some families default to special tokens beyond a small vocabulary; the tokenizer's own are set when it is known.
    values: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if model.weights is not None:
        values = json.loads((weights_folder(model) / "config.json").read_text())
        values.pop("model_type", None)
        for runtime_only in ("architectures", "dtype", "torch_dtype", "transformers_version"):
            values.pop(runtime_only, None)
    return CONFIG_MAPPING[model.spec.model_type](**{**values, **model.config})


def is_local(weights: str | None) -> bool:
    """Whether ``model.weights`` names a folder or file that is there."""
    return weights is not None and Path(weights).expanduser().exists()


def weights_path(model: ModelConfig) -> Path:
    """Local folder or file of ``model.weights``; of a hub id, safetensors, configuration and tokenizer are fetched."""
    assert model.weights is not None
    if is_local(model.weights):
        return Path(model.weights).expanduser()
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            model.weights,
            revision=model.revision,
            allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"],
        )
    )


def weights_folder(model: ModelConfig) -> Path:
    """Where the configuration of ``model.weights`` lies."""
    path = weights_path(model)
    return path.parent if path.is_file() else path


def _looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and os.sep * 2 not in name


def _check_files(path: Path, spec: ModelFamily) -> list[Problem]:
    from .weight_files import PATTERNS

    folder = path.parent if path.is_file() else path
    if not (folder / "config.json").is_file():
        return [
            Problem(
                "model.weights",
                f"the folder {'of the file ' if path.is_file() else ''}has no config.json",
                "point to a folder saved by transformers or by trireme export",
                str(path),
            )
        ]
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in PATTERNS):
        why = f"the folder holds no {' or '.join(PATTERNS)}"
        return [Problem("model.weights", why, "save the model with safetensors", str(path))]
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != spec.model_type:
        return [
            Problem(
                "model.family",
                f"the weights in {folder} are of type {model_type!r}, not {spec.model_type!r}",
                "name the family of the weights",
                spec.name,
            )
        ]
    return []


def _unknown_fields(model: ModelConfig) -> list[Problem]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model.spec.model_type]
    known = (
        {f.name for f in dataclasses.fields(config_class)}
        | set(config_class.attribute_map)
        | set(model.spec.config_extras)
    )
    problems = []
    for name in model.config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(
                Problem(
                    f"model.config.{name}",
                    f"unknown key of {config_class.__name__}",
                    f"did you mean model.config.{near[0]}?" if near else "remove it",
                    model.config[name],
                )
            )
    return problems
