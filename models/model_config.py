"""The ``model`` part of a recipe, and the transformers configuration made from it."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import Problem, UserError, refuse
from .family import ModelFamily, families
from .hub import is_local, local_path

NOT_CONFIGURATION = ("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config")
"""Fields of a config.json that describe how it was saved. They are dropped here; quantised weights are refused when
they are read."""


@dataclass
class ModelConfig:
    """Which model is trained, and where its weights come from."""

    family: str | None = None
    """A family that ``trireme models`` lists; null takes the one that the config.json of ``weights`` names."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's transformers configuration. With ``weights``, these override the folder's config.json."""
    weights: str | None = None
    """Folder with config.json and safetensors (or ``pytorch_model*.bin``, which is loaded without running code in it),
    one such file or index beside its config.json, or a hub id ``owner/name``; null starts from random weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that are not trained: names, or patterns such as ``model.embed_tokens.*``."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """Attention kernel, by transformers' names; null takes the family's best one that needs no further package."""

    def __post_init__(self) -> None:
        if self.family is None:
            self.family = self._family_of_weights()
        refuse(self._flaws(self.family))

    def _flaws(self, family: str) -> Iterator[str]:
        if family not in families():
            near = difflib.get_close_matches(family, families(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"supported are {', '.join(families())}"
            yield f"family={family!r} is not supported; {hint}"
        elif self.attention is not None and self.attention not in self.spec.attention:
            offered = " or ".join(self.spec.attention)
            yield (f"attention={self.attention!r} is not offered by {self.spec.title}; use {offered}")
        if self.revision is not None and (self.weights is None or is_local(self.weights)):
            yield f"revision={self.revision!r} is of no use without a hub id in model.weights; leave it out"

    def _family_of_weights(self) -> str:
        if self.weights is None:
            raise ValueError(f"family is required without weights; choose one of {', '.join(families())}")
        try:
            model_type = config_values(self).get("model_type")
        except UserError as error:
            problem = error.problems[0]
            assert isinstance(problem, Problem)
            name = problem.field.removeprefix("model.")
            raise ValueError(f"{name}={problem.value!r} {problem.why}; {problem.fix}") from None
        return family_of(model_type, self.weights)

    @property
    def spec(self) -> ModelFamily:
        return families()[str(self.family)]

    @property
    def kernel(self) -> str:
        """The attention kernel that is used."""
        return self.attention or self.spec.attention[0]


def family_of(model_type: Any, weights: str) -> str:
    """Name of the family whose transformers configuration has ``model_type``.

    Raises:
        ValueError: no family has it. The message begins with the field, as those of ``__post_init__`` do.
    """
    for name, family in families().items():
        if family.model_type == model_type:
            return name
    supported = ", ".join(sorted(family.model_type for family in families().values()))
    if model_type is None:
        raise ValueError(
            f"weights={weights!r} has a config.json that has no model_type; "
            f"fetch the file again, or add the type of its model: {supported}"
        )
    raise ValueError(
        f"weights={weights!r} holds a model of type {model_type!r}, which is not supported; "
        f"use weights of a supported type: {supported}"
    )


def hf_config(model: ModelConfig) -> Any:
    """The transformers configuration of the model; fields of the recipe win over those of the weights' folder."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model.spec.model_type](**given_fields(model))


def given_fields(model: ModelConfig) -> dict[str, Any]:
    """Configuration fields given by the recipe and by the folder of ``weights``."""
    # Some families default to special tokens that exceed a small vocabulary. Those of the tokenizer are set later, when
    # it is known.
    values: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if model.weights is not None:
        values = config_values(model)
        for name in ("model_type", *NOT_CONFIGURATION):
            values.pop(name, None)
    return {**values, **model.config}


def config_values(model: ModelConfig) -> dict[str, Any]:
    """Content of the config.json beside ``model.weights``.

    Raises:
        UserError: the weights do not exist, or their config.json cannot be read.
    """
    folder = weights_folder(model)
    path = folder / "config.json"
    where = str(model.weights)
    if not path.is_file():
        beside = "of the file " if is_local(where) and Path(os.path.expanduser(where)).is_file() else ""
        fix = "point to a folder saved by transformers or by trireme export"
        if (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file():
            fix = f"this is a run or a checkpoint: write its model with `trireme export {where} OUT` and name OUT"
        raise UserError(Problem("model.weights", f"the folder {beside}has no config.json", fix, where))
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        why = f"has a config.json that cannot be read ({error})"
        raise UserError(Problem("model.weights", why, "fetch or export the folder again", where)) from None
    if not isinstance(values, dict):
        why = "has a config.json that is not a JSON object"
        raise UserError(Problem("model.weights", why, "fetch or export the folder again", where))
    return values


def weights_path(model: ModelConfig, weights: bool = True) -> Path:
    """Local folder or file of ``model.weights``; the files of a hub id are fetched.

    Args:
        weights: fetch the weights too, not only configuration and tokenizer.

    Raises:
        UserError: no such folder, file or hub id can be found.
    """
    assert model.weights is not None
    return local_path(model.weights, model.revision, "model.weights", weights)


def weights_folder(model: ModelConfig) -> Path:
    """Folder with the configuration and the tokenizer of ``model.weights``."""
    path = weights_path(model, weights=False)
    return path.parent if path.is_file() else path
