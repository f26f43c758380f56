"""Read a peft adapter folder and its base model, so that an export can merge the adapter into the base weights.

The tensors pass through the same code as those of a run's own checkpoints, so both merges give the same numbers. A peft
folder has no digest of its base, so the shapes of the base are checked, and its values are not.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import Problem, UserError
from ....models.adapter_config import AdapterConfig
from ....models.build_model import build_on_meta
from ....models.facts import Facts
from ....models.forward_inputs import factory_of
from ....models.heads import HEADS, USUAL
from ....models.hub import local_path
from ....models.low_rank import is_part
from ....models.merge_adapters import tiles
from ....models.model_config import ModelConfig, config_values, hf_config, weights_folder
from ....models.peft_folder import TASKS, PeftFolder, folder_plan, peft_folder
from ....models.quantization.quantization_config import STORED, QuantizationConfig
from ....models.stored_names import own_names
from ....models.weight_files import Stored
from ....models.weight_sets import is_adapter
from ....parallel.strategy import Shapes
from ..source import Progress, Source
from .adapted_model import AdaptedModel, MergedCheckpoint
from .model_assets import PROCESSORS, copy_processors

OTHER_BASE = "name the base that it was trained on: --base FOLDER"


class PeftAdapter(Source):
    """The tensors of an adapter folder by the names of its model, in fp32."""

    def __init__(self, folder: PeftFolder, tensors: Mapping[str, Stored], assets: Path) -> None:
        """
        Args:
            tensors: tensors of the folder, by their names in the model.
            assets: folder with the configuration and the tokenizer of the whole model.
        """
        super().__init__(folder.path)
        self._tensors, self._assets = {f"model.{name}": entry for name, entry in tensors.items()}, assets

    def read_shapes(self) -> Shapes:
        return {name: (entry.shape, torch.float32) for name, entry in self._tensors.items()}

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        for name, target in tensors.items():
            target.copy_(self._tensors[name].read())

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        for name in names:
            entry = self._tensors[name]
            for start, stop in tiles(entry.shape):
                yield entry.rows(start, stop).float().flatten()

    def progress(self) -> Progress:
        raise ValueError(f"{self.path} holds an adapter only; start from it with model.adapter.path={self.path}")

    @property
    def assets(self) -> Path:
        return self._assets


@contextmanager
def peft_source(path: Path, base: str | None, field: str) -> Iterator[MergedCheckpoint]:
    """Context with the adapter at ``path``, merged into its base as it is read.

    Args:
        base: folder or hub id of the base; None takes the one that adapter_config.json names.
        field: the key or option that the user wrote.

    Raises:
        UserError: the adapter cannot be read, its base is not here, or they do not fit.
    """
    folder = peft_folder(str(path), field)
    found = _base(folder, base)
    with tempfile.TemporaryDirectory(prefix="trireme_adapter_") as assets:
        with _about_the_base(found):
            config, head, facts = _as_trained(folder, found)
            plan = folder_plan(folder, build_on_meta(_without_adapter(config), head, facts), None)
            config = dataclasses.replace(config, adapter=AdapterConfig(path=str(folder.path)).as_planned(plan))
            adapted = AdaptedModel(config, 0, head, facts)
        _write_assets(adapted, folder.path, Path(assets))
        yield MergedCheckpoint(PeftAdapter(folder, folder.tensors(adapted.model), Path(assets)), adapted)


def _base(folder: PeftFolder, named: str | None) -> str:
    """The folder or file of the base."""
    base = folder.config.get("base_model_name_or_path") if named is None else named
    fix = "name the folder of its base: --base FOLDER"
    if not isinstance(base, str) or not base:
        raise folder.problem("is an adapter that names no base", fix)
    revision = folder.config.get("revision") if named is None else None
    try:
        found = local_path(base, revision, "--base", weights=True)
    except UserError as error:
        if named is not None:
            raise
        reason = "; ".join(one.why if isinstance(one, Problem) else str(one) for one in error.problems)
        raise folder.problem(f"is an adapter of {base}, which is not here: {reason}", fix) from None
    if found.is_dir() and is_adapter(found):
        fix = "merge that one first (trireme export --merge), and name the whole model: --base FOLDER"
        raise UserError(Problem("--base", "is an adapter itself, not a whole model", fix, base))
    return str(found)


@contextmanager
def _about_the_base(base: str) -> Iterator[None]:
    """Context that turns problems of a recipe's model into problems of the base."""
    try:
        yield
    except ValueError as error:
        raise UserError(Problem("--base", str(error), "name another base", base)) from None
    except UserError as error:
        raise UserError(*(_renamed(one) for one in error.problems)) from None


def _renamed(problem: Problem | str) -> Problem | str:
    if isinstance(problem, Problem) and problem.field.startswith(("model.", "task")):
        return dataclasses.replace(problem, field="--base")
    return problem


def _as_trained(folder: PeftFolder, base: str) -> tuple[ModelConfig, str, Facts]:
    """Configuration, output layer and facts of the trained model, with the tokens and labels that the adapter holds."""
    config = ModelConfig(weights=base)
    said = config_values(config)
    head = _head(folder.config.get("task_type"), hf_config(config), said.get("architectures") or [])
    facts = Facts(None, _labels(said))
    plain = build_on_meta(config, head, facts)
    text = plain.config.get_text_config()
    words, labels = (int(getattr(*each, 0) or 0) for each in ((text, "vocab_size"), (plain.config, "num_labels")))
    tensors, sizes = folder.tensors(plain), own_shapes(plain)
    more, other = words, labels
    for name, entry in tensors.items():
        shape = sizes.get(name, entry.shape)
        if is_part(name) or entry.shape == shape:
            continue
        count = entry.shape[0] if entry.shape[1:] == shape[1:] else None
        if count is not None and shape[0] == words and count > words and more in (words, count):
            more = count
        elif count is not None and HEADS[head].labelled and shape[0] == labels and other in (labels, count):
            other = count
        else:
            raise folder.problem(f"holds {name} of {tuple(entry.shape)}, and its base has {tuple(shape)}", OTHER_BASE)
    if more != words:
        config = dataclasses.replace(config, resize_embeddings=True, config={"vocab_size": more})
    if other != labels:
        facts = Facts(None, tuple(f"LABEL_{number}" for number in range(other)), said.get("problem_type"))
        config = dataclasses.replace(config, new_head=True)
    grown = own_shapes(build_on_meta(config, head, facts))
    if lacking := [name for name, shape in grown.items() if shape != sizes[name] and name not in tensors]:
        why = f"was trained with {more} tokens and {other} labels, and {', '.join(lacking)} of that size is not there"
        raise folder.problem(why, OTHER_BASE)
    if said.get("quantization_config"):
        kept = QuantizationConfig(STORED)
        config = dataclasses.replace(config, quantization=kept, adapter=AdapterConfig())
    return config, head, facts


def own_shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    """Shapes of the tensors of a model, each tied tensor once."""
    state = model.state_dict()
    return {own: state[name].shape for name, own in own_names(model).items()}


def _without_adapter(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, adapter=None, quantization=None)


def _labels(said: Mapping[str, Any]) -> tuple[str, ...]:
    labels = said.get("id2label")
    return tuple(labels[key] for key in sorted(labels, key=int)) if isinstance(labels, dict) else ()


def _head(task: Any, config: Any, architectures: list[str]) -> str:
    """The output layer that the adapter was trained with: of its task, or of the base's own class."""
    told = {theirs: head for head, theirs in TASKS.items()}.get(str(task))
    if told is not None and HEADS[told].labelled:
        return told
    for head in HEADS:
        factory = factory_of(type(config), head)
        if (
            factory is not None
            and head != "features"
            and factory._model_mapping[type(config)].__name__ in architectures
        ):
            return head
    return told or USUAL


def _write_assets(adapted: AdaptedModel, folder: Path, out: Path) -> None:
    """Write configuration and tokenizer of the whole model: the adapter's tokenizer if it has one, else the base's."""
    base = weights_folder(adapted.config)
    values = adapted.trained.config
    values.save_pretrained(out)
    own = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    copy_processors(folder if own else base, out)
    for name in ("generation_config.json", *PROCESSORS):
        if (base / name).is_file() and not (out / name).exists():
            shutil.copyfile(base / name, out / name)
