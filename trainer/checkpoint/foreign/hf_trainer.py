"""Read checkpoint folders of ``transformers.Trainer``, including those in which DeepSpeed or FSDP saved the tensors,
and files that hold weights only.

The weights, ``optimizer.pt``, ``scaler.pt`` and ``trainer_state.json`` are read, and from ``training_args.bin`` the
batch size (without constructing the pickled objects). Schedules and random states are not read: the learning rate is
computed from the step, and random numbers from the seed.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ....models.json_file import read_json
from ....models.weight_files import stored_tensors
from ....parallel.strategy import Shapes
from ..source import Progress, Source
from .dcp import DcpFolder
from .deepspeed import DeepSpeedFolder, tag_folder
from .lazy import Lazy, WholeTensors, forget
from .optimizer_names import optimizer_entries
from .plain_names import matched, tell_unused
from .restricted_reader import TRAINER, attributes, load_torch_file

STATE, ARGUMENTS = "trainer_state.json", "training_args.bin"


def newest_checkpoint(path: Path) -> Path | None:
    """``path`` itself, or the newest ``checkpoint-N`` in it; None if it is no folder of Trainer."""
    if (path / STATE).is_file() and re.fullmatch(r"checkpoint-\d+", path.name):
        return path
    inside = [p for p in path.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name) and (p / STATE).is_file()]
    if inside:
        return max(inside, key=lambda folder: int(folder.name.rpartition("-")[2]))
    return path if (path / STATE).is_file() else None


class WeightsFolder(WholeTensors):
    """Weights in safetensors or ``.bin`` files, without state of a training run."""

    def collect(self) -> dict[str, Lazy]:
        tensors = stored_tensors(self.path)
        found = matched(tensors, self.model)
        tell_unused(tensors, found, self.model, self.path)
        return {f"model.{own}": Lazy(*tensors[stored][1:4]) for own, stored in found.items()}

    def progress(self) -> Progress:
        raise ValueError(f"{self.path} holds weights only; start from them with model.weights={self.path}")

    @property
    def assets(self) -> Path | None:
        folder = self.path.parent if self.path.is_file() else self.path
        return folder if (folder / "config.json").is_file() else None


class WeightsAndOptimizer(WeightsFolder):
    """Weights and ``optimizer.pt``, as Trainer writes them without DeepSpeed or FSDP."""

    def collect(self) -> dict[str, Lazy]:
        entries = super().collect()
        file = self.path / "optimizer.pt"
        if self.model is not None and file.is_file():
            state = load_torch_file(file)
            try:
                entries |= optimizer_entries(state, self.model)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
        return entries


class TrainerFolder(Source):
    """One folder ``checkpoint-N``."""

    @cached_property
    def inner(self) -> Source:
        """The reader of the format in which the tensors were written."""
        if tag_folder(self.path):
            return DeepSpeedFolder(self.path)
        folders = [f for pattern in ("pytorch_model_fsdp_*", "optimizer_*") for f in sorted(self.path.glob(pattern))]
        sharded = [folder for folder in folders if (folder / ".metadata").is_file()]
        return DcpFolder(self.path, sharded) if sharded else WeightsAndOptimizer(self.path)

    def fit(self, model: PreTrainedModel) -> None:
        self.inner.fit(model)
        forget(self, "shapes")

    def read_shapes(self) -> Shapes:
        return self.inner.read_shapes()

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        self.inner.read(tensors, distributed)

    def progress(self) -> Progress:
        file = self.path / STATE
        try:
            state = read_json(file)
            step = int(state["global_step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: cannot be read ({error!r})") from None
        inner = self.inner.progress() if isinstance(self.inner, DeepSpeedFolder) else Progress()
        trainer: dict[str, Any] = {"step": step}
        if state.get("num_input_tokens_seen"):
            trainer["tokens"] = int(state["num_input_tokens_seen"])
        if "samples" in inner.trainer:
            trainer["samples"], notes = inner.trainer["samples"], inner.notes
        else:
            batch, notes = self._batch(state.get("train_batch_size"))
            trainer |= {"samples": step * batch} if batch else {}
        return Progress(trainer=trainer, scalars={"optimizer": {}} | self._loss_scale() | inner.scalars, notes=notes)

    @property
    def assets(self) -> Path | None:
        return self.path if (self.path / "config.json").is_file() else None

    def _batch(self, per_rank: Any) -> tuple[int | None, list[str]]:
        """Samples of one step over all ranks, or None if the folder does not tell; and notes for the log."""
        file = self.path / ARGUMENTS
        if not isinstance(per_rank, int) or not file.is_file():
            return None, []
        try:
            arguments = attributes(load_torch_file(file, TRAINER))
        except ValueError as error:
            return None, [f"the size of a batch stays unknown: {error}"]
        accumulation = arguments.get("gradient_accumulation_steps")
        if not isinstance(accumulation, int):
            return None, []
        ranks = max(len(list(self.path.glob("rng_state_*.pth"))), 1)
        batch = per_rank * accumulation * ranks
        return batch, [
            f"a batch of Trainer was {batch}: {per_rank} samples x {accumulation} accumulated x {ranks} rank(s)"
        ]

    def _loss_scale(self) -> dict[str, Any]:
        file = self.path / "scaler.pt"
        if not file.is_file():
            return {}
        state = load_torch_file(file)
        if not isinstance(state, dict) or "scale" not in state:
            return {}
        return {"loss_scale": {"value": float(state["scale"]), "good_steps": int(state.get("_growth_tracker", 0))}}
