"""The dataclass of a recipe's ``model`` part, and functions that find the model's classes and weights and make the
transformers configuration.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import Problem, UserError, refuse
from .adapter_config import AdapterConfig, MergedAdapter, adapter_of, merged_of
from .family import ModelFamily, families
from .hub import is_local, local_path
from .json_file import read_json
from .locate import locate
from .other_families import AUTO, WRONG, model_types, other_family, wrong_parts
from .published_layouts import as_ours, published_file, read_published
from .quantization.qat_config import QatConfig, qat_of
from .quantization.quantization_config import STORED, QuantizationConfig, quantization_of
from .register_classes import register_classes

FOUND = "check the path; its file is looked for beside the recipe, in the current folder, and among what is installed"
NOT_CONFIGURATION = ("architectures", "dtype", "torch_dtype", "transformers_version", "quantization_config")
"""Fields of a config.json that describe how it was saved. They are dropped here; quantised weights are refused when
they are read."""


@dataclass
class ModelConfig:
    """Which model is trained, and where its weights come from."""

    family: str | None = None
    """A family that ``trireme models`` lists; ``auto`` for any architecture of transformers, whose ``model_type``
    stands in ``config`` or in the config.json of ``weights``; or the dotted path of a ``ModelFamily`` of your own, as
    ``mine.decoder.FAMILY``. Null takes the one of ``weights``."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the family's transformers configuration. With ``weights``, these override the folder's config.json."""
    weights: str | None = None
    """Folder with config.json and safetensors (or ``pytorch_model*.bin``, which is loaded without running code in it),
    one such file or index beside its config.json, or a hub id ``owner/name``; null starts from random weights."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that are not trained: names, or patterns such as ``model.embed_tokens.*``."""
    frozen_batchnorm: bool = False
    """Keep the statistics of BatchNorms as they are. Models with BatchNorm are refused otherwise, since statistics of
    one micro-batch would make the result depend on the plan."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] | None = None
    """Attention kernel, by transformers' names; null takes the family's best one that needs no further package.
    ``flash_attention_2`` and ``flex_attention`` train on GPUs only."""
    loss: Literal["auto", "plain", "chunked", "liger"] = "auto"
    """How losses of tokens are computed: ``plain`` of all logits; ``chunked`` in pieces, without holding all logits;
    ``liger`` by the kernels of liger-kernel, on a GPU. ``auto`` takes pieces from 65,536 words on, where the model and
    the task allow it. The trajectory is the same."""
    new_head: bool = False
    """Begin the head at random, also if the weights hold one (for other labels than those of the weights)."""
    resize_embeddings: bool = False
    """Give the model as many embeddings as the tokenizer has tokens; those that the weights lack begin at random."""
    neftune_alpha: float | None = None
    """Add uniform noise to the embeddings of tokens in training (NEFTune), in +-alpha / sqrt(tokens of the sample x
    width). The paper uses 5, 10 and 15 for instruction tuning. Evaluation, generation and exports have none."""
    architecture: str | None = None
    """Dotted path of a model class, derived from transformers' ``PreTrainedModel``, which is built for every task;
    ``config`` holds the fields of its configuration class. ``family`` may name a family of your own beside it."""
    adapter: AdapterConfig | None = None
    """Small matrices that are trained beside the frozen weights (LoRA, DoRA); null trains the weights themselves."""
    merged_adapters: dict[str, MergedAdapter] = field(default_factory=dict)
    """Adapters that are added to the weights before training, by names of your choice, in this order."""
    quantization: QuantizationConfig | None = None
    """Keep the frozen linear layers quantised; needs ``adapter``, since quantised weights cannot be trained."""
    qat: QatConfig | None = None
    """Train weights for their rounding: forward passes compute with rounded ones (quantisation-aware training)."""

    def __post_init__(self) -> None:
        self.described: dict[str, Any] | None = None
        """Content of a config.json that counts instead of the one beside ``weights``: that of a checkpoint. No key of
        a recipe, and not written with it."""
        if self.family is None:
            self.family = self._family_of_weights()
        if self.family == AUTO and self.architecture is None:
            self.family = self._own_file()
        refuse(self._flaws(self.family))

    def _flaws(self, family: str) -> Iterator[str]:
        if wrong := [*wrong_parts(self.config, without=family)]:
            yield from (
                f"{field}={kind!r} is refused: {WRONG[kind]}; use another architecture" for field, kind in wrong
            )
        elif kind := self._wrong_part_of_weights():
            yield f"weights={self.weights!r} holds a model of type {kind!r}, refused: {WRONG[kind]}; use another one"
        elif self.architecture is not None:
            yield from _own_class_flaws(self)
        if "." in family:
            yield from _own_family_flaws(self)
        elif self.architecture is not None:
            return
        elif family == AUTO:
            yield from self._auto_flaws()
        elif family not in families():
            near = difflib.get_close_matches(family, families(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"supported are {', '.join((*families(), AUTO))}"
            yield f"family={family!r} is not supported; {hint}"
        elif self.attention is not None and self.attention not in self.spec.attention:
            offered = " or ".join(self.spec.attention)
            yield (f"attention={self.attention!r} is not offered by {self.spec.title}; use {offered}")
        if self.neftune_alpha is not None and not 0 < self.neftune_alpha < float("inf"):
            yield f"neftune_alpha={self.neftune_alpha} must be greater than 0; use 5, or null for no noise"
        spec = families().get(family)
        if self.neftune_alpha is not None and spec is not None and not spec.embeddings:
            yield f"neftune_alpha={self.neftune_alpha} needs embeddings of tokens; leave it out for {spec.title}"
        if self.merged_adapters and self.weights is None:
            names = ", ".join(self.merged_adapters)
            yield f"merged_adapters={names} need a base; name it as model.weights, or leave merged_adapters out"
        if self.adapter is not None and self.adapter.path is not None and self.weights is None:
            yield "adapter.path needs the base of this adapter; name it as model.weights"
        if self.qat is not None and self.adapter is not None:
            yield (
                f"qat={self.qat.method} trains the weights of linear layers, which adapters freeze; leave one of the "
                "two out (quantization=nf4 trains adapters on a quantised base)"
            )
        if self.quantization is not None and self.adapter is None:
            yield (
                f"quantization={self.quantization.method} needs adapters, since quantised weights cannot be trained; "
                "add adapter=lora, or leave model.quantization out"
            )
        if self.quantization is not None and self.quantization.method == STORED and self.weights is None:
            yield "quantization.method=stored needs a folder of quantised weights; name it as model.weights"
        if self.quantization is not None and self.quantization.method == STORED and self.merged_adapters:
            names = ", ".join(self.merged_adapters)
            yield f"merged_adapters={names} cannot be merged into quantised weights; merge them before quantising"
        if self.revision is not None and (self.weights is None or is_local(self.weights)):
            yield f"revision={self.revision!r} has no effect without a hub id in model.weights; leave it out"

    def _auto_flaws(self) -> Iterator[str]:
        kind = self._model_type()
        if kind is None:
            yield "config.model_type=None is missing, and family=auto needs it; write one, such as qwen3, or weights"
        elif kind not in model_types():
            near = difflib.get_close_matches(str(kind), model_types(), n=1)
            hint = f"did you mean {near[0]}?" if near else "use one that transformers has"
            yield f"config.model_type={kind!r} is not an architecture of transformers; {hint}"

    def _wrong_part_of_weights(self) -> str | None:
        """A wrong architecture in the config.json of local weights; a folder without one is reported elsewhere."""
        if self.weights is None or not is_local(self.weights):
            return None
        try:
            return next((kind for _, kind in wrong_parts(config_values(self), without=str(self.family))), None)
        except UserError:
            return None

    def _model_type(self) -> str | None:
        """``model_type`` of a family without a file."""
        if "model_type" in self.config or self.weights is None:
            return self.config.get("model_type")
        return config_values(self).get("model_type")

    def _family_of_weights(self) -> str:
        if self.architecture is not None:
            return AUTO
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

    def _own_file(self) -> str:
        """The family with a file that ``auto`` stands for; ``auto`` where no file describes the architecture."""
        try:
            kind = self._model_type()
        except UserError:  # reported with the weights
            return AUTO
        return next((name for name, family in families().items() if family.model_type == kind), AUTO)

    @property
    def spec(self) -> ModelFamily:
        if "." in str(self.family):
            return own_family(str(self.family))
        if self.architecture is not None:
            return other_family(own_class(self).config_class.model_type or self.architecture.rpartition(".")[2])
        return other_family(str(self._model_type())) if self.family == AUTO else families()[str(self.family)]

    @property
    def kernel(self) -> str | None:
        """The attention kernel that is used; None leaves the choice to transformers."""
        offered = () if self.family == AUTO else self.spec.attention
        return self.attention or (offered[0] if offered else None)

    @property
    def own(self) -> bool:
        """Whether the class of the model is the user's own."""
        return self.architecture is not None or "." in str(self.family)


def plain_model_config(values: Mapping[str, Any], weights: str | None = None) -> ModelConfig:
    """The ``model`` part of a recipe that was read back as plain data.

    Args:
        weights: where the weights lie now; None takes what the recipe says.

    Raises:
        ValueError: it is of another version, or its weights cannot be found.
    """
    parts = {"adapter": adapter_of(values.get("adapter")), "merged_adapters": merged_of(values.get("merged_adapters"))}
    parts["quantization"] = quantization_of(values.get("quantization"))
    parts["qat"] = qat_of(values.get("qat"))
    try:
        return ModelConfig(**{**values, **parts, **({"weights": weights} if weights is not None else {})})
    except TypeError as error:
        raise ValueError(f"model was written by another version of trireme ({error})") from None


def family_of(model_type: Any, weights: str) -> str:
    """Name of the family whose transformers configuration has ``model_type``.

    Raises:
        ValueError: no family has it. The message begins with the field, as those of ``__post_init__`` do.
    """
    for name, family in families().items():
        if family.model_type == model_type:
            return name
    if isinstance(model_type, str) and model_type in model_types():
        return AUTO
    supported = ", ".join(sorted(family.model_type for family in families().values()))
    if model_type is None:
        raise ValueError(
            f"weights={weights!r} has a config.json that has no model_type; "
            f"fetch the file again, or add the type of its model: {supported}"
        )
    raise ValueError(
        f"weights={weights!r} holds a model of type {model_type!r}, which is not supported; "
        f"use weights of a supported type: {supported}, or name a family of your own (model.family=mine.net.FAMILY)"
    )


def hf_config(model: ModelConfig) -> Any:
    """The transformers configuration of the model; fields of the recipe win over those of the weights' folder."""
    return config_class(model)(**given_fields(model))


def config_class(model: ModelConfig) -> Any:
    """The configuration class of the model."""
    if model.architecture is not None:
        return own_class(model).config_class
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    register_classes(model.spec)
    return CONFIG_MAPPING[model.spec.model_type]


def own_class(model: ModelConfig) -> Any:
    """The model class that ``architecture`` names.

    Raises:
        ValueError: it cannot be imported, or is no ``PreTrainedModel`` with a configuration class.
    """
    found = _located("architecture", str(model.architecture))
    if not inspect.isclass(found) or not hasattr(found, "base_model_prefix"):
        raise ValueError(
            f"architecture={model.architecture!r} is not a PreTrainedModel of transformers; derive it from that, and "
            "set config_class"
        )
    if not hasattr(getattr(found, "config_class", None), "model_type"):
        raise ValueError(
            f"architecture={model.architecture!r} is wrong because it names no configuration; set config_class to a "
            "class that derives from transformers' PreTrainedConfig and has a model_type"
        )
    return found


def own_family(path: str) -> ModelFamily:
    """The user's own family at a dotted path.

    Raises:
        ValueError: it cannot be imported, or is no ``ModelFamily``.
    """
    found = _located("family", path)
    if not isinstance(found, ModelFamily):
        raise ValueError(
            f"family={path!r} is a {type(found).__name__}, not a ModelFamily; make it by trireme.models.family.decoder "
            "or another constructor there"
        )
    return found


def _located(field: str, path: str) -> Any:
    try:
        return locate(path)
    except Exception as error:  # the user's own module may fail in any way
        reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split()).replace("; ", ", ")
        raise ValueError(f"{field}={path!r} cannot be imported: {reason}; {FOUND}") from None


def _own_class_flaws(model: ModelConfig) -> Iterator[str]:
    try:
        found = own_class(model)
    except ValueError as error:
        yield str(error)
        return
    kind = found.config_class.model_type
    if kind in WRONG and found.__module__.startswith("transformers."):
        yield f"architecture={model.architecture!r} is refused: {WRONG[kind]}; use another architecture"


def _own_family_flaws(model: ModelConfig) -> Iterator[str]:
    try:
        family = own_family(str(model.family))
    except ValueError as error:
        yield str(error)
        return
    if model.architecture is None and not _is_registered(family.model_type):
        yield (
            f"family={model.family!r} is wrong because transformers has no model_type {family.model_type!r}; write "
            f"AutoConfig.register({family.model_type!r}, YourConfig, exist_ok=True) in its file, and register the "
            "model class with AutoModelForCausalLM or another Auto class, or name the class as model.architecture"
        )


def _is_registered(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def given_fields(model: ModelConfig) -> dict[str, Any]:
    """Configuration fields given by the recipe and by the folder of ``weights``."""
    # Some families default to special tokens that exceed a small vocabulary. Those of the tokenizer are set later, when
    # it is known.
    values: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if model.weights is not None:
        values = config_values(model)
        for name in ("model_type", *NOT_CONFIGURATION):
            values.pop(name, None)
    return {**values, **{name: value for name, value in model.config.items() if name != "model_type"}}


def config_values(model: ModelConfig) -> dict[str, Any]:
    """Content of the config.json beside ``model.weights``, or of the checkpoint's.

    Raises:
        UserError: the weights do not exist, or their config.json cannot be read.
    """
    if model.described is not None:
        return as_ours(dict(model.described))
    folder = weights_folder(model)
    path = folder / "config.json"
    where = str(model.weights)
    if (file := published_file(weights_path(model, weights=False))) is not None:
        return read_published(file)
    if not path.is_file():
        beside = "of the file " if is_local(where) and Path(os.path.expanduser(where)).is_file() else ""
        fix = "point to a folder saved by transformers or by trireme export"
        if (folder / "adapter_config.json").is_file():
            fix = "this is an adapter: name its base as model.weights, and this folder as model.adapter.path"
        elif (folder / "checkpoints").is_dir() or (folder / "manifest.json").is_file():
            fix = f"this is a run or a checkpoint: write its model with `trireme export {where} OUT` and name OUT"
        raise UserError(Problem("model.weights", f"the folder {beside}has no config.json", fix, where))
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        why = f"has a config.json that cannot be read ({error})"
        raise UserError(Problem("model.weights", why, "fetch or export the folder again", where)) from None
    if not isinstance(values, dict):
        why = "has a config.json that is not a JSON object"
        raise UserError(Problem("model.weights", why, "fetch or export the folder again", where))
    return as_ours(values)


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
