"""Read folders that DeepSpeed's ``save_checkpoint`` wrote under ZeRO stages 0 to 3, with any number of data ranks.

Stages 1 and 2 concatenate the fp32 weights of each parameter group and cut the result into one piece per rank, so one
parameter may span several pieces. Stage 3 cuts every parameter into equal pieces, one per rank, and each rank
concatenates its pieces. Moments are stored like weights. (The layout is documented by
``deepspeed/utils/zero_to_fp32.py``.) Files are memory-mapped, and tensors are put together one at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..source import Progress
from .lazy import Lazy, WholeTensors, counter, lazily
from .optimizer_names import optimizer_entries, parameter_groups
from .plain_names import matched, tell_unused
from .restricted_reader import DEEPSPEED, attributes, load_torch_file

MODEL_FILES, OPTIMIZER_FILES = "*_model_states.pt", "*_optim_states.pt"


def tag_folder(path: Path) -> Path | None:
    """The folder with the files: ``path``, or the one that ``latest`` in it names; None if DeepSpeed did not write it.

    Raises:
        ValueError: ``latest`` names a folder that is not there.
    """
    if any(path.glob(MODEL_FILES)):
        return path
    latest = path / "latest"
    if not latest.is_file() or latest.stat().st_size > 1000:
        return None
    folder = path / latest.read_text(errors="replace").strip()
    if folder.parent != path or not any(folder.glob(MODEL_FILES)):
        raise ValueError(f"{latest}: names no folder with {MODEL_FILES}")
    return folder


@dataclass
class Partitions:
    """Flat pieces that hold parameters one after the other."""

    lines: list[list[Tensor]]
    """Each line is a list of pieces: one line over all ranks (stages 1 and 2), or one line per rank (stage 3)."""

    def take(self, start: int, count: int, shape: torch.Size) -> Tensor:
        """``count`` elements of every line from ``start`` on, put together without the padding at the end."""
        runs = [piece for line in self.lines for piece in _run(line, start, count)]
        return (runs[0] if len(runs) == 1 else torch.cat(runs))[: shape.numel()].view(shape)


class DeepSpeedFolder(WholeTensors):
    """Training state of a DeepSpeed engine."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.folder = tag_folder(path) or path

    def collect(self) -> dict[str, Lazy]:
        tensors, moments = self._unsharded()
        if self._optimizers:
            masters, moments = self._sharded()
            tensors |= masters
        found = matched(_without_copies(tensors, self._model), self.model)
        tell_unused(_without_copies(tensors, self._model), found, self.model, self.folder)
        entries = {f"model.{own}": tensors[stored] for own, stored in found.items()}
        own_of = {stored: own for own, stored in found.items()}
        for stored, states in moments.items():
            if stored in own_of:
                entries |= {f"optim.{own_of[stored]}.{key}": entry for key, entry in states.items()}
        return entries

    def progress(self) -> Progress:
        model, config = self._model, self._model.get("ds_config") or {}
        step = int(model.get("global_steps", 0))
        trainer, notes = {"step": step}, []
        batch = config.get("train_batch_size")
        if model.get("global_samples"):
            trainer["samples"] = int(model["global_samples"])
            notes.append(f"{trainer['samples']} samples were consumed, as DeepSpeed counted")
        elif isinstance(batch, int):
            trainer["samples"] = step * batch
            notes.append(f"{trainer['samples']} samples were consumed: {step} steps of train_batch_size {batch}")
        scale = self._loss_scale()
        scalars: dict[str, Any] = {"optimizer": {}} | ({"loss_scale": scale} if scale else {})
        return Progress(trainer=trainer, scalars=scalars, notes=notes)

    @property
    def assets(self) -> Path | None:
        places = (self.path, self.folder.parent)
        return next((place for place in places if (place / "config.json").is_file()), None)

    # -- files ------------------------------------------------------------------------------------------------

    @cached_property
    def _models(self) -> list[dict[str, Any]]:
        """Model state files: one, or one of each rank (stage 3)."""
        files = _by_rank(self.folder, MODEL_FILES)
        states = [load_torch_file(file, DEEPSPEED) for file in files]
        for file, state in zip(files, states, strict=True):
            if not isinstance(state, dict) or not isinstance(state.get("module"), dict):
                raise ValueError(f"{file}: is not a model state of a DeepSpeed engine")
        return states

    @property
    def _model(self) -> dict[str, Any]:
        return self._models[0]

    @cached_property
    def _optimizers(self) -> list[dict[str, Any]]:
        """Optimizer state of each rank; empty under stage 0."""
        files = _by_rank(self.folder, OPTIMIZER_FILES)
        states: list[dict[str, Any]] = []
        for file in files:
            state = attributes(load_torch_file(file, DEEPSPEED)).get("optimizer_state_dict")
            if not isinstance(state, dict) or "partition_count" not in state:
                raise ValueError(f"{file}: is not an optimizer state of ZeRO")
            states.append(state)
        if states:
            count = states[0]["partition_count"]
            count = max(count) if isinstance(count, list) else count
            if count != len(states):
                raise ValueError(f"{self.folder}: holds {len(states)} {OPTIMIZER_FILES} of {count} ranks")
        return states

    # -- unsharded: stage 0, frozen parameters, buffers ----------------------------------------------------------

    def _unsharded(self) -> tuple[dict[str, Lazy], dict[str, dict[str, Lazy]]]:
        """Weights and moments by stored name."""
        tensors = {name: lazily(t) for name, t in self._model["module"].items() if _whole(t)}
        for name, shape in (self._model.get("frozen_param_shapes") or {}).items():
            if name not in tensors:  # under stage 3 every rank keeps a piece
                pieces = Partitions([[state["frozen_param_fragments"][name]] for state in self._models])
                tensors[name] = _piece(pieces, 0, pieces.lines[0][0].numel(), shape)
        return tensors, {} if self._optimizers else self._stage0(tensors)

    def _stage0(self, tensors: dict[str, Lazy]) -> dict[str, dict[str, Lazy]]:
        """Moments of an optimizer that is not sharded. Its fp32 weights, if it has any, replace the rounded ones."""
        saved = self._model.get("optimizer")
        if not saved or self.model is None:  # parameters are numbered, and only the model tells their names
            return {}
        state = saved.get("optimizer_state_dict", saved)
        stored_of = matched(_without_copies(tensors, self._model), self.model)
        if "fp32_groups_flat" in saved:
            raise ValueError(
                f"{self.folder}: fp32 weights of stage 0 are flattened, which trireme cannot read; save under ZeRO"
            )
        if "fp32_groups" in saved:
            groups = parameter_groups(state, self.model)
            for names, masters in zip(groups, saved["fp32_groups"], strict=True):
                tensors |= {stored_of[n]: lazily(t.detach()) for n, t in zip(names, masters, strict=True)}
        moments: dict[str, dict[str, Lazy]] = {}
        for name, entry in optimizer_entries(state, self.model).items():
            own, _, key = name.removeprefix("optim.").rpartition(".")
            moments.setdefault(stored_of[own], {})[key] = entry
        return moments

    # -- sharded: stages 1 to 3 -----------------------------------------------------------------------------------

    def _sharded(self) -> tuple[dict[str, Lazy], dict[str, dict[str, Lazy]]]:
        masters: dict[str, Lazy] = {}
        moments: dict[str, dict[str, Lazy]] = {}
        stage3 = "fp32_flat_groups" in self._optimizers[0]
        for shapes, weights, states, paddings in self._stage3() if stage3 else self._groups():
            start = 0
            for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
                shape = torch.Size(shape)
                count = math.ceil(shape.numel() / len(weights.lines)) if stage3 else shape.numel()
                masters[name] = _piece(weights, start, count, shape)
                moments[name] = {
                    key: _piece(value, start, count, shape) if isinstance(value, Partitions) else counter(value)
                    for key, value in states.items()
                }
                start += count + padding
            _check_length(weights, start, self.folder)
        return masters, moments

    def _groups(self) -> Iterator[tuple[dict[str, torch.Size], Partitions, dict[str, Any], list[int]]]:
        """Stages 1 and 2: (shapes, weights, moments, padding after each parameter) of every parameter group."""
        key = "single_partition_of_fp32_groups"
        bases = [state["base_optimizer_state"] for state in self._optimizers]
        if not all(isinstance(base, dict) and "state" in base for base in bases):
            raise ValueError(f"{self.folder}: was saved with elastic_checkpoint, which trireme cannot read")
        paddings = self._optimizers[0].get("param_alignment_paddings")
        for number, shapes in enumerate(self._model["param_shapes"]):
            weights = Partitions([[state[key][number].detach() for state in self._optimizers]])
            held = [base["state"].get(base["param_groups"][number]["params"][0], {}) for base in bases]
            states = _joined([[values] for values in held], one_line=True)
            _count(states, bases[0]["param_groups"][number])
            yield shapes, weights, states, paddings[number] if paddings else [0] * len(shapes)

    def _stage3(self) -> Iterator[tuple[dict[str, torch.Size], Partitions, dict[str, Any], list[int]]]:
        """Stage 3: all parameters are one group, whose lines go on over DeepSpeed's sub-groups."""
        shapes = {name: shape for group in self._model["param_shapes"] for name, shape in group.items()}
        weights = Partitions([[t.detach() for t in state["fp32_flat_groups"]] for state in self._optimizers])
        bases = [state["optimizer_state_dict"] for state in self._optimizers]
        numbers = [number for group in bases[0]["param_groups"] for number in group["params"]]
        held = [[base["state"].get(number, {}) for number in numbers] for base in bases]
        states = _joined(held, one_line=False)
        _count(states, bases[0]["param_groups"][0])
        yield shapes, weights, states, [0] * len(shapes)

    def _loss_scale(self) -> dict[str, Any] | None:
        """The fp16 loss scale, in the form in which every plan of trireme saves it; None if it is not dynamic."""
        held = self._optimizers[0].get("loss_scaler") if self._optimizers else self._model.get("optimizer")
        scaler = attributes(held)
        if not scaler.get("dynamic", scaler.get("dynamic_loss_scale", False)):
            return None
        good = int(scaler.get("cur_iter", 0)) - int(scaler.get("last_overflow_iter", -1)) - 1
        scale = {"value": float(scaler.get("cur_scale", 1.0)), "good_steps": good}
        return scale | ({"hysteresis": int(scaler["cur_hysteresis"])} if "cur_hysteresis" in scaler else {})


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    """Files in the order of data ranks.

    Raises:
        ValueError: model-parallel ranks have files of their own.
    """
    files = list(folder.glob(pattern))
    other = [file for file in files if not re.search(r"mp_rank_00", file.name)]
    if other:
        raise ValueError(
            f"{other[0]}: was saved under DeepSpeed's tensor parallelism or experts, which trireme cannot read"
        )
    return sorted(files, key=lambda file: [int(n) for n in re.findall(r"pp_rank_(\d+)", file.name)])


def _without_copies(tensors: dict[str, Lazy], state: dict[str, Any]) -> dict[str, Lazy]:
    """The tensors with each tied parameter listed once."""
    shared = state.get("shared_params") or {}
    return {name: entry for name, entry in tensors.items() if shared.get(name) not in tensors}


def _whole(value: Any) -> bool:
    """Whether ``value`` holds a whole parameter; stage 3 stores empty tensors in their place."""
    return isinstance(value, Tensor) and value.numel() > 0


def _run(line: list[Tensor], start: int, count: int) -> Iterator[Tensor]:
    for piece in line:
        if start < piece.numel() and count > 0:
            part = piece[start : start + count]
            count -= part.numel()
            start = 0
            yield part
        else:
            start -= piece.numel()
    if count > 0:
        raise ValueError("the pieces of its ranks end before its parameters do")


def _piece(pieces: Partitions, start: int, count: int, shape: torch.Size) -> Lazy:
    return Lazy(torch.Size(shape), pieces.lines[0][0].dtype, lambda: pieces.take(start, count, torch.Size(shape)))


def _joined(held: list[list[dict[str, Any]]], one_line: bool) -> dict[str, Any]:
    """Optimizer state of all ranks by key; counters, which are equal on all ranks, are taken once.

    Args:
        held: for each rank, the state of its flat pieces.
    """
    first = held[0][0]
    if not all(values.keys() == first.keys() for rank in held for values in rank):
        raise ValueError("ranks hold different optimizer state")
    states: dict[str, Any] = {}
    for key, value in first.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            lines = [[values[key].flatten() for values in rank] for rank in held]
            states[key] = Partitions([[piece for line in lines for piece in line]] if one_line else lines)
        elif isinstance(value, (int, float, Tensor)):
            states[key] = value
    return states


def _count(states: dict[str, Any], group: dict[str, Any]) -> None:
    """Take the step counter of the group: fused optimizers keep no counter for each parameter."""
    if states and "step" not in states and "step" in group:
        states["step"] = group["step"]


def _check_length(weights: Partitions, end: int, folder: Path) -> None:
    """Make sure that the pieces hold as many elements as the parameters, give or take the alignment."""
    for line in weights.lines:
        held, align = sum(piece.numel() for piece in line), 2 * max(len(line), len(weights.lines))
        if not end <= held <= end + align:
            raise ValueError(f"{folder}: its pieces hold {held} elements, its parameters need {end}")
