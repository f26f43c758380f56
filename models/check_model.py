"""Check the ``model`` part of a recipe before any process starts, and collect warnings about it.

Weights in local safetensors files are checked by the headers of the files: names, types and shapes of the tensors.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from .accepted_configs import recall, refusal, remember
from .check_config_numbers import check_arithmetic
from .check_family import check_family
from .check_head import check_head
from .config_errors import beyond, blame, wrong_types
from .hub import is_local
from .model_config import ModelConfig, config_class, config_values, family_of, given_fields, hf_config, weights_path
from .other_families import described
from .quantization.check_quantization import check_qat
from .quantization.quantization_config import STORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .family import ModelFamily
    from .pretrained import Matched

FLASH, FLEX = "flash_attention_2", "flex_attention"
"""Attention kernels that train on GPUs only."""
SUPPORTS = {"sdpa": "_supports_sdpa", FLASH: "_supports_flash_attn", FLEX: "_supports_flex_attn"}
"""Attention kernel -> the field by which classes of transformers say whether they have it."""
QUANTISATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Files in which older quantisers, from before ``quantization_config``, wrote their settings."""


def check_model(model: ModelConfig, block_size: int, head: str = "causal_lm") -> list[Problem]:
    """Problems of the model that are known before launch: weights, configuration fields, sequence length.

    Args:
        head: the output layer that the task asks for.
    """
    try:
        problems = _check_weights(model) if model.weights is not None else []
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    config, problems = (None, problems) if problems else accepted(model)
    if config is None:
        return problems
    problems = [*check_head(model, config, head), *_check_length(config, model, block_size)]
    problems += _check_dropout(config, model)
    problems = problems or check_family(_without_missing_qat(model), head)
    return problems or _check_tensors(model, head)


def accepted(model: ModelConfig) -> tuple[Any, list[Problem]]:
    """The configuration, or None and its problems. A configuration that was accepted before is not checked again."""
    if (known := recall(model)) is not None:
        return known, []
    if problems := refusal(model):
        return None, problems
    fields = given_fields(model)
    if problems := _unknown_fields(model):
        unknown = {problem.field.removeprefix("model.config.") for problem in problems}
        known = {name: value for name, value in fields.items() if name not in unknown}
        return None, [*problems, *wrong_types(config_class(model), known, model.config, model.weights)]
    if problems := beyond(fields, model.config, model.weights):
        return None, problems
    try:
        config = hf_config(model)
        problems = check_arithmetic(config, model)
    except Exception:  # transformers raises exceptions of many kinds
        return None, blame(lambda values: _made(model, values), fields, model.config, model.weights)
    if not problems:
        remember(model, config)
    return (None, problems) if problems else (config, [])


def _made(model: ModelConfig, values: dict[str, Any]) -> None:
    """Make and check a configuration of ``values``, as ``accepted`` does."""
    check_arithmetic(config_class(model)(**values), model)


def check_kernel(model: ModelConfig, precision: str, here: bool = True) -> list[Problem]:
    """Problems of the attention kernel that the recipe names.

    Args:
        here: whether the run starts on this machine; if so, the machine must have a GPU for kernels that need one.
    """
    if model.attention is not None and _lacks(model.spec.model_type, model.attention):
        why = f"is not offered by transformers for models of the type {model.spec.model_type}"
        return [Problem("model.attention", why, "set model.attention=eager, or null", model.attention)]
    if model.kernel not in (FLASH, FLEX):
        return []
    if model.kernel == FLASH and importlib.util.find_spec("flash_attn") is None:
        why, fix = "needs the package flash-attn, which is not installed", "pip install flash-attn"
    elif model.kernel == FLASH and precision == "fp32":
        why, fix = "computes in bf16 or fp16 only, and plan.precision is fp32", "set plan.precision=bf16"
    elif here and _devices() == 0:
        why, fix = "needs a GPU to train, and there is none here", "run it on a machine with one"
    else:
        return []
    return [Problem("model.attention", why, f"{fix}, or model.attention=null", model.kernel)]


def _lacks(model_type: str, kernel: str) -> bool:
    """Whether the classes of transformers for a type of models say that they do not have an attention kernel. Their
    source is read, since an import takes seconds."""
    flag, origin = SUPPORTS.get(kernel), getattr(importlib.util.find_spec("transformers"), "origin", None)
    if flag is None or origin is None:
        return False
    name = model_type.replace("-", "_")
    file = Path(origin).parent / "models" / name / f"modeling_{name}.py"
    said = set(re.findall(rf"^ +{flag} *= *(True|False)", file.read_text("utf-8"), re.M)) if file.is_file() else set()
    return said == {"False"}


def _check_dropout(config: Any, model: ModelConfig) -> list[Problem]:
    """Problems of attention dropout, which FlexAttention does not have."""
    if model.kernel != FLEX:
        return []
    fields = [name for name in vars(config) if ("attn" in name or "attention" in name) and "drop" in name]
    why, fix = "is not zero, and flex_attention drops nothing", "set it to 0, or use model.attention=eager"
    shares = {name: getattr(config, name) for name in fields}
    return [Problem(f"model.config.{name}", why, fix, share) for name, share in shares.items() if share]


def _devices() -> int:
    import torch

    return torch.cuda.device_count()


def model_notes(model: ModelConfig, precision: str) -> list[str]:
    """Warnings about a valid model."""
    if precision == "fp16" and model.spec.fp16:
        return [f"plan.precision=fp16: {model.spec.title} {model.spec.fp16}; bf16 has the range that it needs"]
    return []


def weight_notes(model: ModelConfig, head: str = "causal_lm") -> list[str]:
    """Warnings about valid local weights: tensors and files that the run will not use."""
    try:
        matched = _match(model, head)
    except UserError:
        return []
    return list(matched.notes) if matched else []


def _check_weights(model: ModelConfig) -> list[Problem]:
    """Problems of the weights' folder and its config.json.

    Raises:
        UserError: the folder or its config.json is missing.
    """
    values = config_values(model)
    path = weights_path(model, weights=False)
    folder = path.parent if path.is_file() else path
    if model.quantization is not None and model.quantization.method == STORED:
        from .quantization.find_stored import stored_quantization_of

        stored_quantization_of(model)  # refuses weights that are not quantised, or in a way that is not read
    elif problem := _quantised(values, folder, str(model.weights)):
        return [problem]
    if values.get("model_type") != model.spec.model_type:
        if model.architecture is not None:
            return [_other_class(model, values, folder)]
        try:
            family = family_of(values.get("model_type"), str(model.weights))
        except ValueError as error:
            why, _, fix = str(error).partition("; ")
            why = why.removeprefix(f"weights={model.weights!r} ")
            return [Problem("model.weights", why, fix, model.weights)]
        why = f"the weights in {folder} are of the family {family}"
        return [Problem("model.family", why, f"set model.family={family}, or leave it out", model.family)]
    return _check_files(model, path) if is_local(model.weights) else []


def _other_class(model: ModelConfig, values: dict[str, Any], folder: Path) -> Problem:
    """The refusal of a class that is for models of another type than the weights are of."""
    why = f"is a class for models of the type {model.spec.model_type}, and the weights in {folder} are of the type "
    classes = [f"transformers.{name}" for name in values.get("architectures") or []]
    fix = f"name a class for {values.get('model_type')}" + (f", such as {classes[0]}" if classes else "")
    return Problem("model.architecture", f"{why}{values.get('model_type')}", fix, model.architecture)


def _check_files(model: ModelConfig, path: Path) -> list[Problem]:
    from .weight_sets import chosen_set, none_there

    try:
        chosen = chosen_set(path)
    except ValueError as error:
        why, _, fix = str(error).partition("; ")
        return [Problem("model.weights", why, fix or "fetch or export the folder again", model.weights)]
    if not chosen.files:
        why, _, fix = none_there(path).partition("; ")
        return [Problem("model.weights", f"the folder {why}", fix, model.weights)]
    return []


def _quantised(values: dict[str, Any], folder: Path, weights: str) -> Problem | None:
    """Refuse weights that config.json, or a file beside it, calls quantised, since they cannot be trained."""
    from .stored_names import quantised_by

    said = values.get("quantization_config") or values.get("compression_config")
    beside = next((name for name in QUANTISATION_FILES if (folder / name).is_file()), None)
    if not said and beside is None:
        return None
    method = said.get("quant_method") if isinstance(said, dict) else None
    told = f"config.json has a quantization_config ({method or 'of no method'})" if said else f"there is a {beside}"
    names, plain = _names_and_plainness(folder)
    if names and plain and not quantised_by(names):
        why = f"{told}, but the tensors are plain numbers without scales"
        fix = f"if they are the whole weights, take it out of {folder / (beside or 'config.json')}"
        if said:
            fix = f"if they are the whole weights, take quantization_config out of {folder / 'config.json'}"
        return Problem("model.weights", why, fix, weights)
    fix = "train adapters beside them (quantization=stored adapter=lora), use the model before it was quantised, or "
    fix += "load it with transformers, call model.dequantize(), and save it"
    return Problem("model.weights", f"the weights are quantised: {told}; they cannot be trained", fix, weights)


def _names_and_plainness(folder: Path) -> tuple[list[str], bool]:
    """Names of the tensors in the folder's safetensors files, and whether all of them are floats of 16 bits or more."""
    from .safetensors_headers import read_head
    from .weight_sets import chosen_set

    try:
        heads = [read_head(file) for file in chosen_set(folder).files if file.suffix == ".safetensors"]
    except ValueError:  # a damaged file is reported when its weights are read
        return [], False
    entries = {name: entry for head in heads for name, entry in head.items()}
    return list(entries), all(dtype in ("F64", "F32", "F16", "BF16") for dtype, _ in entries.values())


def _check_tensors(model: ModelConfig, head: str) -> list[Problem]:
    try:
        _match(model, head)
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    return []


def _match(model: ModelConfig, head: str) -> Matched | None:
    """Build the model on the meta device and find its tensors in the headers of local safetensors files.

    None for other files: a ``.bin`` has no header, so it is first read when training starts. Architectures without a
    family file are built in any case, since only the model tells which heads they have.
    """
    if not is_local(model.weights):
        if model.adapter is not None or model.merged_adapters or not model.spec.stacks:
            _check_merged(model, _blueprint(model, head))
        return None
    from .build_model import matched_weights
    from .weight_sets import chosen_set

    if any(file.suffix != ".safetensors" for file in chosen_set(weights_path(model)).files):
        return None
    blueprint = _blueprint(model, head)
    _check_merged(model, blueprint)
    return matched_weights(model, blueprint) if blueprint else None


def _check_merged(model: ModelConfig, blueprint: PreTrainedModel | None) -> None:
    """Find the layers of the adapters that are merged.

    Raises:
        UserError: one does not fit the model.
    """
    if model.merged_adapters and blueprint is not None:
        from .adapter_weights import merged_deltas
        from .quantization.quantised_layer import with_whole_weights

        merged_deltas(with_whole_weights(blueprint), model.merged_adapters)


def _blueprint(model: ModelConfig, head: str) -> PreTrainedModel | None:
    """The model on the meta device; None for an unknown head, which is reported with the task."""
    from .build_model import build_on_meta
    from .facts import Facts
    from .heads import HEADS

    plain = dataclasses.replace(_without_missing_qat(model), attention="eager")
    return build_on_meta(plain, head, Facts()) if head in HEADS else None


def _without_missing_qat(model: ModelConfig) -> ModelConfig:
    """The model without ``model.qat`` if the package for it is missing, so that it can be built; another check reports
    the package."""
    return dataclasses.replace(model, qat=None) if check_qat(model.qat) else model


def family_for_plan(model: ModelConfig, head: str) -> ModelFamily:
    """The family of ``model``, whose parts are read from the built model if no file names them.

    Raises:
        UserError: the model cannot be built.
    """
    if model.spec.stacks or (built := _blueprint(model, head)) is None:
        return model.spec
    return described(model.spec, built)


def _check_length(config: Any, model: ModelConfig, block_size: int) -> list[Problem]:
    for stack in model.spec.stacks:
        limit = getattr(config, stack.context, None) if stack.context else None
        if limit is not None and block_size > limit:
            why = f"is longer than the model's {stack.context} ({limit})"
            fix = f"use at most {limit}, or raise model.config.{stack.context}"
            return [Problem("data.block_size", why, fix, block_size)]
    return []


def _unknown_fields(model: ModelConfig) -> list[Problem]:
    cls: Any = config_class(model)
    if not hasattr(
        cls, "__dataclass_fields__"
    ):  # a configuration class of the user's own takes what its constructor takes
        return []
    known = {f.name for f in dataclasses.fields(cls)} | set(cls.attribute_map) | set(model.spec.config_extras)
    known |= set(inspect.signature(cls.__init__).parameters) - {"self"} if model.own else set()
    known |= {"model_type"} if model.config.get("model_type") == model.spec.model_type else set()
    problems = []
    for name in model.config:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            problems.append(
                Problem(
                    f"model.config.{name}",
                    f"unknown key of {cls.__name__}",
                    f"did you mean model.config.{near[0]}?" if near else "remove it",
                    model.config[name],
                )
            )
    return problems
