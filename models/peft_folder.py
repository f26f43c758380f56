"""Read and write adapters in peft's format: a folder with adapter_config.json and adapter_model.safetensors.

peft is not imported, since the format is a JSON file and plain tensor names (``base_model.model.PATH.lora_A.weight``
for ``PATH.weight``). LoRA, rsLoRA, DoRA and fully trained modules are read. Every other feature of peft is refused with
an error that names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from .adapter_config import AdapterConfig
from .adapter_plan import AdapterPlan, pattern_key
from .hub import is_local
from .json_file import read_json
from .low_rank import DOWN, MAGNITUDE, UP, is_linear, is_part, sizes_of
from .stored_names import own_names
from .weight_files import Stored, stored_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NOT_READ = (
    *("lora_bias", "layer_replication", "trainable_token_indices", "target_parameters", "use_qalora"),
    *("alora_invocation_tokens", "arrow_config", "use_bdlora", "velora_config", "monteclora_config", "kasa_config"),
    *("loftq_config", "corda_config", "eva_config", "lora_ga_config", "megatron_config"),
)
"""Fields of adapter_config.json that, if they are set, mean something else than plain LoRA."""
COPIES = ("modules_to_save", "original_module")
"""Parts of the names of further copies of a module whose weights are all trained."""
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` of adapters whose base differs from the published one."""

TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}
"""Head -> peft's name of the task."""
WITH_NEW_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Tasks whose head peft expects in the adapter's file."""


@dataclass(frozen=True)
class PeftFolder:
    """An adapter that peft has saved."""

    path: Path
    field: str
    """Key of the recipe that names it."""
    config: dict[str, Any]
    """Content of adapter_config.json."""
    stored: dict[str, Stored]
    """Tensors by their names in the file, without the prefix."""

    def problem(self, why: str, fix: str) -> UserError:
        """The refusal of this folder."""
        return UserError(Problem(self.field, why, fix, str(self.path)))

    def tensors(self, model: nn.Module) -> dict[str, Stored]:
        """Tensors by the names of ``model``.

        Raises:
            UserError: a tensor has no place in the model.
        """
        return {place: self.stored[name] for place, name in self.names(model).items()}

    def names(self, model: nn.Module) -> dict[str, str]:
        """Names in the file, without the prefix, by the names of ``model``; an adapter of a bare backbone has shorter
        ones.

        Raises:
            UserError: a tensor has no place in the model.
        """
        prefix = getattr(model, "base_model_prefix", "")
        own = {**own_names(model), **{name: name for name, _ in model.named_parameters() if is_part(name)}}
        layers = {path for path, module in model.named_modules() if is_linear(module)}
        found: dict[str, str] = {}
        for stored, entry in self.stored.items():
            name = plain_name(stored)
            choices = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
            there = (c for c in choices if c in own or (is_part(c) and c.rpartition(".")[0] in layers))
            place = next(there, None)
            if place is None:
                fix = "use an adapter of this model; adapters of embeddings and convolutions cannot be read"
                raise self.problem(f"holds {stored}, which has no place in {type(model).__name__}", fix)
            place = own.get(place, place)
            if place in found and self.stored[found[place]].file != entry.file:
                raise self.problem(f"holds {place} twice", "save the adapter again")
            found.setdefault(place, stored)
        return found


def peft_folder(path: str, field: str) -> PeftFolder:
    """The adapter in a local folder; only the headers of its weights are read.

    Args:
        field: the key that the user wrote.

    Raises:
        UserError: there is no adapter of LoRA in the folder, or one that is not read.
    """
    folder = Path(os.path.expanduser(path))
    if not is_local(path) or not (folder / CONFIG).is_file():
        why = "there is no folder of this name" if not is_local(path) else f"the folder has no {CONFIG}"
        fix = "name a folder that peft's save_pretrained or trireme export has written; fetch one of the hub first"
        raise UserError(Problem(field, why, fix, path))
    try:
        config = read_json(folder / CONFIG)
        files = [name for name in (WEIGHTS, "adapter_model.bin") if (folder / name).is_file()]
        stored = stored_tensors(folder / files[0]) if files else {}
    except (OSError, ValueError) as error:
        raise UserError(Problem(field, f"cannot be read: {error}", "save the adapter again", path)) from None
    found = PeftFolder(folder, field, config if isinstance(config, dict) else {}, _without_prefix(stored))
    for why, fix in _flaws(found):
        raise found.problem(why, fix)
    return found


def _without_prefix(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors by their names without the prefix. Where the vocabulary has grown, peft saves a trained embedding three
    times: under its name, as ``modules_to_save``, and, as it was before training, as ``original_module``."""
    plain = {name.removeprefix(PREFIX): entry for name, entry in stored.items()}
    found = {name: entry for name, entry in plain.items() if not {*COPIES}.intersection(name.split("."))}
    for name, entry in plain.items():
        if f".{COPIES[0]}." in name:
            found.setdefault(name.replace(f".{COPIES[0]}.", "."), entry)
    return found


def _flaws(folder: PeftFolder) -> Iterator[tuple[str, str]]:
    config, merge = folder.config, "merge it with peft, and name the merged model as model.weights"
    if config.get("peft_type") != "LORA":
        yield f"holds an adapter of the kind {config.get('peft_type')}, but trireme reads only LORA", merge
    if not folder.stored:
        yield f"holds no {WEIGHTS}", "save the adapter again"
    if config.get("bias", "none") != "none":
        yield f"trains biases too (bias={config['bias']!r}), which trireme cannot read", merge
    for name in NOT_READ:
        if config.get(name):
            yield f"sets {name}, which trireme cannot read", merge
    init = str(config.get("init_lora_weights"))
    if init.startswith(OTHER_BASE):
        yield (
            f"was initialised by {init}, which changes the base, so it does not fit the published base",
            "convert it with peft to plain LoRA",
        )
    odd = next((name for name in folder.stored if "lora_embedding" in name or name.endswith("lora_B.bias")), None)
    if odd:
        yield f"holds {odd}, but trireme reads only adapters of linear layers without a bias", merge


def folder_plan(folder: PeftFolder, model: PreTrainedModel, config: AdapterConfig | None) -> AdapterPlan:
    """The layers of ``model`` that have an adapter in ``folder``.

    Args:
        config: the recipe's own keys, which must agree; None has none.

    Raises:
        UserError: tensors that do not fit the model, or keys of the recipe that contradict the folder.
    """
    said, names = folder.config, folder.names(model)
    tensors = {place: folder.stored[name] for place, name in names.items()}
    layers = [path for path, module in model.named_modules() if f"{path}.{DOWN}" in tensors and is_linear(module)]
    ranks, alphas, dora = {}, {}, bool(said.get("use_dora"))
    for path in layers:
        rank = tensors[f"{path}.{DOWN}"].shape[0]
        _check_shapes(folder, tensors, path, model.get_submodule(path), rank, dora)
        patterns = said.get("alpha_pattern") or {}
        key = pattern_key(patterns, plain_name(names[f"{path}.{DOWN}"]).removesuffix(f".{DOWN}"))
        ranks[path], alphas[path] = rank, float(said.get("lora_alpha", 8) if key is None else patterns[key])
    whole = [name for name in tensors if not is_part(name)]
    saved = [path for path, module in model.named_modules() if _owns(path, module, whole)]
    plan = AdapterPlan(ranks, alphas, saved, bool(said.get("use_rslora")), dora)
    if not layers and not saved:
        raise folder.problem("holds no adapter of a layer", "name the folder of an adapter")
    _refuse_half_tied(folder, model, tensors)
    for problem in _contradictions(folder, config, plan) if config else ():
        raise UserError(problem)
    return plan


def _owns(path: str, module: nn.Module, names: list[str]) -> bool:
    own = [f"{path}.{name}" if path else name for name, _ in module.named_parameters(recurse=False)]
    return bool(own) and any(name in names for name in own)


def _check_shapes(
    folder: PeftFolder, tensors: Mapping[str, Stored], path: str, layer: nn.Module, rank: int, dora: bool
) -> None:
    inputs, outputs = sizes_of(layer)
    wanted = {DOWN: (rank, inputs), UP: (outputs, rank), **({MAGNITUDE: (outputs,)} if dora else {})}
    for part, shape in wanted.items():
        entry = tensors.get(f"{path}.{part}")
        if entry is None or tuple(entry.shape) != shape:
            found = f"lacks {path}.{part}" if entry is None else f"holds {path}.{part} of {tuple(entry.shape)}"
            why = f"{found}, but the layer needs {shape}"
            raise folder.problem(why, "use the adapter of a model of this size")


def _refuse_half_tied(folder: PeftFolder, model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Refuse an embedding that was trained apart from the head that is tied to it, or with another value."""
    import torch

    names: dict[str, list[str]] = {}
    for name, own in own_names(model).items():
        names.setdefault(own, []).append(name)
    for own in tensors:
        if is_part(own) or len(names.get(own, ())) < 2:
            continue
        held = [entry for stored, entry in folder.stored.items() if plain_name(stored) in names[own]]
        if len(held) < len(names[own]) or any(not torch.equal(held[0].read(), other.read()) for other in held[1:]):
            tied = " and ".join(names[own])
            why = f"was trained with separate {tied}, but they are one (tied) parameter in this model"
            raise folder.problem(why, "merge it with peft, set tie_word_embeddings=false there, and name the result")


def _contradictions(folder: PeftFolder, config: AdapterConfig, plan: AdapterPlan) -> Iterator[Problem]:
    """Keys of the recipe that say something else than the folder."""
    said = {
        "rank": (config.rank, set(plan.ranks.values())),
        "alpha": (config.alpha, set(plan.alphas.values())),
        "rslora": (config.rslora, {plan.rslora}),
        "dora": (config.dora, {plan.dora}),
    }
    for name, (value, values) in said.items():
        if value is not None and values != {value}:
            there = ", ".join(map(str, sorted(values)))
            why = f"contradicts the adapter in {folder.path}, where it is {there}"
            yield Problem(f"model.adapter.{name}", why, "leave it out, or begin without model.adapter.path", value)
    given = {"targets": config.targets, "modules_to_save": config.modules_to_save, "exclude": config.exclude}
    given |= {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern}
    for name, value in given.items():
        if value:
            why = f"is set, but the adapter in model.adapter.path already fixes its layers ({len(plan.ranks)})"
            yield Problem(f"model.adapter.{name}", why, "leave it out, or begin without model.adapter.path", value)


def plain_name(stored: str) -> str:
    """Our name of a tensor that peft calls ``stored``, without the prefix."""
    name = stored.removeprefix(PREFIX)
    return name.removesuffix(".weight") if is_part(name.removesuffix(".weight")) else name


def peft_name(name: str) -> str:
    """The name that peft gives a parameter of ours in its file."""
    return f"{PREFIX}{name}" + (".weight" if name.endswith((f".{DOWN}", f".{UP}")) else "")


def config_values(
    plan: AdapterPlan, dropout: float, base: str | None, revision: str | None, head: str
) -> dict[str, Any]:
    """Content of adapter_config.json: all that differs from peft's defaults.

    Args:
        base: folder or hub id of the base.
        head: the model's output layer.
    """
    kind = TASKS.get(head)
    ranks, alphas = list(plan.ranks.values()), list(plan.alphas.values())
    rank, alpha = _most(ranks), _most(alphas)
    return {
        "peft_type": "LORA",
        "task_type": None if kind in WITH_NEW_HEADS and not plan.saved else kind,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout,
        "use_rslora": plan.rslora,
        "use_dora": plan.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted(plan.ranks),
        "modules_to_save": sorted(plan.saved) or None,
        "rank_pattern": {f"^{path}": each for path, each in plan.ranks.items() if each != rank},
        "alpha_pattern": {f"^{path}": each for path, each in plan.alphas.items() if each != alpha},
    }


def _most(values: list[Any]) -> Any:
    """The value that occurs most, the first of equals."""
    return max(dict.fromkeys(values), key=values.count, default=8)
