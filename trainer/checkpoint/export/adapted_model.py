"""Read an adapter checkpoint for export: build its model on the meta device, or merge the adapters into the base."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from transformers import PreTrainedModel

from ....errors import Problem, UserError
from ....models.adapter_plan import AdapterPlan, read_plan
from ....models.adapters import adapter_plan
from ....models.build_model import base_parts, base_rows, build_on_meta
from ....models.exported_class import import_own_classes
from ....models.facts import Facts
from ....models.low_rank import is_part
from ....models.merge_adapters import Rows, delta_of, merging, tiles
from ....models.model_config import ModelConfig, plain_model_config
from ....models.other_families import described
from ....models.quantization.quantised_layer import WEIGHT, oriented, quantised_layers, whole, with_whole_weights
from ....parallel.strategy import Shapes
from ...base_identity import Base, BaseDigest
from ...tasks.task import head_of
from ..layout import RECIPE
from ..source import Progress, Source


class AdaptedModel:
    """The model that adapters belong to, on the meta device."""

    def __init__(self, config: ModelConfig, seed: int, head: str, facts: Facts) -> None:
        """
        Args:
            seed: seed of the base's random weights, if it has no weight files.
            head: the output layer.

        Raises:
            ValueError: the configuration has no adapters.
            UserError: there is no such model.
        """
        if config.adapter is None:
            raise ValueError("its recipe has no model.adapter")
        self.config, self.seed, self.head = config, seed, head
        self.trained: PreTrainedModel = build_on_meta(config, head, facts)
        """The model as it was trained; its base may be quantised."""
        self.model = with_whole_weights(self.trained)
        self.plan: AdapterPlan = adapter_plan(self.model, config.adapter, described(config.spec, self.model))


def adapted_by(source: Source, weights: str | None = None) -> AdaptedModel:
    """The model of a checkpoint of an adapter run.

    Args:
        weights: where the base lies now; None takes what the recipe of the run says.

    Raises:
        ValueError: the recipe of the checkpoint, or its base, cannot be read.
    """
    recipe: dict[str, Any] = yaml.safe_load((source.path / RECIPE).read_text())
    assert source.assets is not None
    import_own_classes(recipe["model"])
    config = _with_its_vocabulary(plain_model_config(recipe["model"], weights), source.assets)
    if config.adapter is not None and (plan := read_plan(source.assets)) is not None:
        config = dataclasses.replace(config, adapter=config.adapter.as_planned(plan))
    return AdaptedModel(config, int(recipe.get("seed", 0)), head_of(recipe["task"]), _facts(source.assets))


def _with_its_vocabulary(config: ModelConfig, assets: Path) -> ModelConfig:
    """The configuration with the number of tokens that the run had, if the recipe let it grow."""
    size = json.loads((assets / "config.json").read_text()).get("vocab_size")
    if not config.resize_embeddings or size is None:
        return config
    return dataclasses.replace(config, config={**config.config, "vocab_size": size})


def _facts(assets: Path) -> Facts:
    """Labels of the data, as the configuration of the run's model notes them."""
    values = json.loads((assets / "config.json").read_text())
    labels = values.get("id2label") or {}
    return Facts(None, tuple(labels[key] for key in sorted(labels, key=int)), values.get("problem_type"))


class MergedCheckpoint(Source):
    """A checkpoint of adapters merged into their base, which is read like the checkpoint of a fully trained model.

    Weights are merged tile by tile, so that memory does not depend on their sizes, and every number is the one that
    merging in one piece gives. A quantised base is unpacked layer by layer, since adapters fit its rounded numbers.
    """

    def __init__(self, inner: Source, adapted: AdaptedModel, saved: Base | None = None, ema: bool = False) -> None:
        """
        Args:
            inner: the tensors of the adapters.
            adapted: their model.
            saved: the record of the base in the checkpoint; None compares no digest.
            ema: merge averaged adapters.
        """
        super().__init__(inner.path)
        self.inner, self.saved, self.prefix = inner, saved, "ema" if ema else "model"
        self.adapted = adapted
        self.digest = BaseDigest(self.adapted.trained)
        self._layers = dict(quantised_layers(self.adapted.trained))

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the whole model on the meta device, each tied tensor once."""
        model = self.adapted.model
        kept = model.state_dict()
        every = (*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept))
        return {name: tensor for name, tensor in every if not is_part(name)}

    @cached_property
    def _base(self) -> Any:
        return base_rows(self.adapted.config, self.adapted.model, self.adapted.seed)

    @cached_property
    def _parts(self) -> Any:
        return base_parts(self.adapted.config, self.adapted.trained, self.adapted.seed)

    def _rows(self, name: str) -> Rows:
        """A function that gives rows of a tensor of the base; a quantised layer is first unpacked as a whole."""
        path, _, kind = name.rpartition(".")
        layer = self._layers.get(path)
        if layer is None or kind != WEIGHT:
            return self._base(name)
        parts = dict(self._parts({f"{path}.{part}" for part in layer.layout}))
        for part, tensor in parts.items():
            self.digest.note(part, [tensor])
        own = {part: parts[f"{path}.{part}"] for part in layer.layout}
        weight = oriented(layer, whole(layer, own, torch.float32)).contiguous()
        return lambda start, stop: weight[start:stop]

    def read_shapes(self) -> Shapes:
        return {f"model.{name}": (tensor.shape, tensor.dtype) for name, tensor in self._tensors.items()}

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        for name, target in tensors.items():
            target.view(-1).copy_(torch.cat([block.clone() for block in self.blocks([name], 0)]))

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        for name in (name.removeprefix("model.") for name in names):
            if f"model.{name}" in self.inner.shapes:
                yield from self.inner.blocks([f"{self.prefix}.{name}"], limit)
            else:
                yield from self._of_base(name)

    def check_read(self) -> None:
        if self.saved is None:
            return
        for name in self.digest.missing:  # tensors that the export leaves out
            for _ in self._of_base(name):
                pass
        if self.digest.of_this_process() != self.saved.digest:
            raise UserError(self._other_base(self.saved.weights))

    def check_base(self, check: Callable[[], None]) -> None:
        """Compare the base with the one on which the adapters were trained; its weights are read once for that.

        Args:
            check: called between blocks; an exception that it raises ends the reading.

        Raises:
            UserError: it is another base.
        """
        for name in self._tensors:
            if f"model.{name}" not in self.inner.shapes:
                for _ in self._noted(name, self._rows(name)):
                    check()
        self.check_read()

    def _other_base(self, then: str | None) -> Problem:
        config = self.adapted.config
        now = f"the weights of {config.weights}" if config.weights else "the random weights of the recipe"
        why = f"the adapters in {self.path} were trained on another base ({then or 'random weights of a seed'}): "
        fix = "restore that base, or name the folder where it is now: --base FOLDER"
        return Problem("--base", f"{why}{now} have other numbers", fix, config.weights)

    def _noted(self, name: str, rows: Rows) -> Iterator[Tensor]:
        """The tiles of a tensor of the base, which are digested as they pass."""
        return self.digest.noted(name, (rows(start, stop) for start, stop in tiles(self._tensors[name].shape)))

    def _of_base(self, name: str) -> Iterator[Tensor]:
        """Blocks of a tensor of the base, with the adapter beside it merged into it."""
        tensor, rows = self._tensors[name], self._rows(name)
        path, _, kind = name.rpartition(".")
        read = self._noted(name, rows)
        if kind != "weight" or path not in self.adapted.plan.ranks:
            yield from (block.to(tensor.dtype).flatten() for block in read)
            return
        layer = self.adapted.model.get_submodule(path)
        merge = merging(rows, tensor.shape, delta_of(path, self.adapted.plan, self._part, layer))
        for (start, stop), tile in zip(tiles(tensor.shape), read, strict=True):
            yield merge(start, stop, tile).flatten()

    def _part(self, name: str) -> Tensor:
        shape, dtype = self.inner.shapes[f"{self.prefix}.{name}"]
        target = torch.empty(shape, dtype=dtype)
        self.inner.read({f"{self.prefix}.{name}": target})
        return target.float()

    def damage(self, names: list[str]) -> str | None:
        return self.inner.damage(list(self.inner.shapes))

    def progress(self) -> Progress:
        return self.inner.progress()

    @property
    def assets(self) -> Path | None:
        return self.inner.assets
