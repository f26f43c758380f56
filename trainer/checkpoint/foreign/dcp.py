"""Read folders of torch's distributed checkpoint (DCP), as FSDP, torchtitan and accelerate write them.

Tensors are matched by the end of their names (``app.model.<name>``, ``optim.state.<name>.exp_avg``). Each rank reads
only its own shard of each tensor. Everything else in such a folder (step counters of scripts, schedules, data loaders)
is pickled, and is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from transformers import PreTrainedModel

from ....parallel.strategy import Shapes
from ..dcp_errors import failure_message, quiet
from ..source import Progress, Source
from .lazy import check_fit, forget
from .plain_names import matched, plain, suffixes, tell_unused
from .restricted_reader import SafeReader, read_dcp_metadata

STATE = "state."
"""Part of a stored name: the optimizer's prefix ends with it, and the parameter's name follows."""


class DcpFolder(Source):
    """One or several folders with a ``.metadata`` and ``*.distcp`` files."""

    def __init__(self, path: Path, folders: Sequence[Path] = ()) -> None:
        super().__init__(path)
        self.folders = list(folders) or [path]
        self.model: PreTrainedModel | None = None

    def fit(self, model: PreTrainedModel) -> None:
        self.model = model
        forget(self, "stored", "shapes")

    @cached_property
    def stored(self) -> dict[str, tuple[Path, str, torch.Size, torch.dtype]]:
        """For each name of the common layout: folder, stored name, shape and type."""
        found = {}
        for folder in self.folders:
            tensors = {
                name: entry
                for name, entry in read_dcp_metadata(folder / ".metadata").state_dict_metadata.items()
                if isinstance(entry, TensorStorageMetadata)
            }
            names = _weights(tensors, self.model, folder) | _moments(tensors, self.model)
            found |= {
                own: (folder, name, tensors[name].size, tensors[name].properties.dtype) for own, name in names.items()
            }
        return found

    def read_shapes(self) -> Shapes:
        return {name: (shape, dtype) for name, (_, _, shape, dtype) in self.stored.items()}

    def read(self, tensors: dict[str, Tensor], distributed: bool = False) -> None:
        for name, tensor in tensors.items():
            check_fit(name, tensor, self.shapes, self.path)
        for folder in self.folders:  # reading is a collective call, so every rank reads from every folder
            wanted = {self.stored[n][1]: tensor for n, tensor in tensors.items() if self.stored[n][0] == folder}
            try:
                with quiet():
                    dcp.load(wanted, storage_reader=SafeReader(folder), no_dist=not distributed)
            except CheckpointException as failure:
                raise ValueError(failure_message(failure)) from None

    def progress(self) -> Progress:
        step, how = self._step()
        return Progress(trainer={"step": step}, scalars={"optimizer": {}}, notes=[f"step {step} is taken from {how}"])

    @property
    def assets(self) -> Path | None:
        return self.path if (self.path / "config.json").is_file() else None

    def _step(self) -> tuple[int, str]:
        """The step and where it was found: the optimizer's counter, or else the number that ends the folder's name."""
        counters = [name for name in self.stored if name.startswith("optim.") and name.endswith(".step")]
        scalars = [name for name in counters if self.shapes[name][0].numel() == 1][:1]
        if scalars:
            value = torch.zeros(self.shapes[scalars[0]][0], dtype=torch.float32)
            self.read({scalars[0]: value})
            return int(value.item()), "the optimizer's own counter"
        number = re.search(r"(\d+)$", self.path.name)
        return (
            (int(number[1]), f"the folder's name ({self.path.name})")
            if number
            else (0, "nothing: the folder names no step")
        )


def _weights(tensors: dict[str, TensorStorageMetadata], model: PreTrainedModel | None, path: Path) -> dict[str, str]:
    candidates = [name for name in tensors if f".{STATE}" not in f".{plain(name)}" and ".param_groups." not in name]
    found = matched(candidates, model)
    tell_unused(candidates, found, model, path)
    return {f"model.{own}": stored for own, stored in found.items()}


def _moments(tensors: dict[str, TensorStorageMetadata], model: PreTrainedModel | None) -> dict[str, str]:
    """Optimizer state: tensors called ``<anything>state.<name of a parameter>.<key>``."""
    if model is None:
        return {}
    own = {name for name, _ in model.named_parameters()}
    found: dict[str, str] = {}
    for stored in tensors:
        before, _, key = plain(stored).rpartition(".")
        for prefix, name in suffixes(before):
            if name in own and prefix.endswith(STATE):
                found.setdefault(f"optim.{name}.{key}", stored)
    return found
