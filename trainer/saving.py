"""Write checkpoints when the training loop asks: collect their contents, and write them, usually in the background."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import Problem, UserError, short
from ..models.adapter_plan import write_plan
from ..models.adapters import plan_of
from ..models.copy_base_files import write_base_assets
from ..parallel.strategy import CopyTensor, no_copy
from .base_identity import write_base
from .checkpoint.layout import files_of
from .checkpoint.store import Contents
from .component_errors import component_errors
from .preference_reference import write_reference
from .run_folder import write_recipe

if TYPE_CHECKING:
    from .loop import Trainer


class Saving:
    """Collects the contents of a checkpoint and hands them to the store."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.store = trainer, trainer.store
        self.saved_at = -1
        """Step of the newest requested checkpoint; -1 before the first."""
        self.failed = False
        """Whether the newest checkpoint could not be written."""
        self._began = 0.0
        self._assets: dict[str, bytes] = {}

    def save(self, wait: bool = False) -> None:
        """Write a checkpoint of this step, in the background unless ``wait`` or the recipe says otherwise. A failure is
        reported, and training goes on."""
        self.end()  # waits for the previous checkpoint
        self.saved_at, self._began = self.trainer.state.step, time.monotonic()
        self.trainer.emit("on_pre_save")
        with self.trainer.state.read_only(False):  # a callback may have called save()
            self.trainer.state.data = self.trainer.batches.position()
        native = self._write_native if self.trainer.checkpoints.deepspeed else None
        background = self.store.asynchronous and not wait and native is None  # engines can only write between steps
        copy = self.store.staging.copy_of if background else no_copy
        contents = Contents(
            self.trainer.state.step,
            self.tensors(copy),
            self._json_state(),
            self._write_assets,
            self.trainer.recipe.plan.name,
            native,
            self.trainer.metric_of_this_step(),
            self.trainer.not_finite(),
        )
        if background and self.store.staged():
            self.store.begin(contents)
        else:
            self._ended(self.store.save(contents))

    def end(self) -> None:
        """Wait for the checkpoint in flight, if there is one."""
        if self.store.in_flight:
            self._ended(self.store.end())

    def tensors(self, copy: CopyTensor = no_copy) -> dict[str, torch.Tensor]:
        """Tensors that this rank writes into a checkpoint, by their names in the common layout; a collective call.

        Args:
            copy: see ``Strategy.saved_tensors``.
        """
        ema, weights_only = self.trainer.ema, self.trainer.checkpoints.only_model

        def copied(name: str, tensor: torch.Tensor) -> torch.Tensor:
            return tensor if weights_only and name.startswith("optim.") else copy(name, tensor)

        strategy, lanes = self.trainer.strategy, self.trainer.strategy.lanes
        found = strategy.saved_tensors(copied) | (ema.saved_tensors(copy) if ema else {})
        found |= lanes.saved_tensors(copy) if lanes else {}
        return {name: tensor for name, tensor in found.items() if not (weights_only and name.startswith("optim."))}

    def _ended(self, path: Path | None) -> None:
        self.failed = path is None
        if path is not None:
            self.trainer.emit("on_save", path)
        self.trainer.leaving.limit.save_took(time.monotonic() - self._began)

    def _json_state(self) -> dict[str, Any]:
        trainer = self.trainer
        callbacks = {}
        for name, callback in trainer.callbacks.items():
            with component_errors(f"callbacks.{name}", callback, "state_dict"):
                callbacks[name] = callback.state_dict()
            fix = "return numbers, strings, lists and dicts; write tensors as lists (tensor.tolist())"
            if not isinstance(callbacks[name], dict) or not _keys_are_texts(callbacks[name]):
                why = f"its state_dict gives {short(callbacks[name])}, not a dict whose keys are texts"
                raise UserError(Problem(f"callbacks.{name}", why, fix))
            _refuse_no_json(f"callbacks.{name}", "its state_dict", callbacks[name], fix)
        scalars = trainer.strategy.scalars()
        _refuse_no_json("optimizer", "its state", scalars, "keep tensors and numbers in it, by parameter")
        return {"trainer": trainer.state.to_json(), "callbacks": callbacks, "scalars": scalars}

    def _write_native(self, folder: Path) -> None:
        self.trainer.strategy.save_native(folder, self.trainer.state.step, self.trainer.state.samples)

    def _write_assets(self, folder: Path) -> None:
        """Write recipe, model configuration, tokenizer, and the base model's settings of generation.

        All but the recipe never change, and saving a large tokenizer blocks training for a second; so their bytes are
        kept after the first time.
        """
        write_recipe(self.trainer.recipe, folder)
        model = folder / "model"
        if not self._assets:
            self._save_pretrained(model)
            self._assets = {name: (model / name).read_bytes() for name in files_of(model)}
            return
        for name, content in self._assets.items():
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_bytes(content)

    def _save_pretrained(self, folder: Path) -> None:
        try:
            self.trainer.blueprint.config.save_pretrained(folder)
            if self.trainer.corpus.processor is not None:
                self.trainer.corpus.processor.save_pretrained(folder)
            vocabulary = self.trainer.corpus.facts.vocabulary
            write_base_assets(self.trainer.recipe.model, vocabulary.ends if vocabulary else [], folder)
            if self.trainer.base is not None:
                write_base(self.trainer.base, folder)
            if (plan := plan_of(self.trainer.blueprint)) is not None:
                write_plan(plan, folder)
            if self.trainer.reference is not None:
                write_reference(self.trainer.reference, folder)
        except OSError:
            raise
        except Exception as error:  # tokenizers raises a bare Exception for a full disk
            raise OSError(f"the processor cannot be saved: {error}") from error


def _keys_are_texts(value: Any) -> bool:
    """Whether all keys in a value are strings: JSON makes strings of others, which a resume would not find again."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _keys_are_texts(item) for key, item in value.items())
    return all(map(_keys_are_texts, value)) if isinstance(value, list | tuple) else True


def _refuse_no_json(key: str, what: str, state: Any, fix: str) -> None:
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise UserError(Problem(key, f"{what} cannot be written as JSON: {error}", fix)) from None
