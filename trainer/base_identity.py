"""Identify the base model of a run that trains adapters, by a digest of its weights computed while they are loaded.

A checkpoint of an adapter run holds the adapters, the fully trained modules and this digest, but not the base weights.
A resume or an export with a base model of another digest is refused. The digest is computed over the frozen tensors in
fp32, by name. It is therefore the same for every plan, for other files with the same weights, and for a base model into
which adapters were merged before; it changes if a single weight differs. For quantised layers, the bytes of their
integers are digested.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

from ..errors import Problem, UserError
from ..models.adapters import adapter_names
from ..models.build_model import WeightSource
from ..models.json_file import read_json
from ..models.model_config import ModelConfig
from .checkpoint.layout import MODEL, checkpoints_at

if TYPE_CHECKING:
    from torch import nn

    from ..parallel.mesh import Mesh

BASE = "base.json"
"""File of a checkpoint's folder ``model`` that names the base."""


@dataclass(frozen=True)
class Base:
    """The record of the base in a checkpoint of adapters."""

    digest: str
    weights: str | None
    """``model.weights`` of the run."""
    revision: str | None = None
    quantization: dict[str, Any] | None = None
    """The part of ``model.quantization`` that the numbers depend on; None for a base in full precision."""


class BaseDigest:
    """Computes digests of the tensors of the base while they are read, by name."""

    def __init__(self, model: nn.Module, every: bool = False) -> None:
        """
        Args:
            every: digest all parameters, also those of adapters.
        """
        names = {name for name, _ in model.named_parameters()}
        self.names = names if every else names - adapter_names(model)
        self._found: dict[str, str] = {}

    def watched(self, source: WeightSource) -> WeightSource:
        """A source of the same weights, which digests each tensor that is read from it."""

        def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
            for name, tensor in source(names):
                self.note(name, [tensor])
                yield name, tensor

        return weights

    def note(self, name: str, blocks: Iterable[Tensor]) -> None:
        """Digest a tensor, given as blocks of its elements in order."""
        for _ in self.noted(name, blocks):
            pass

    def noted(self, name: str, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The blocks of a tensor, each of which is digested before it is yielded."""
        found = xxhash.xxh3_128()
        for block in blocks:
            if name in self.names:
                number = block.float() if block.is_floating_point() else block
                found.update(number.contiguous().flatten().view(torch.uint8).numpy().data)
                self._found[name] = found.hexdigest()  # now, since a caller may stop after the last block
            yield block

    def of_all(self, mesh: Mesh) -> str:
        """The digest of the whole base, of which every rank may have seen a part; a collective call."""
        found: dict[str, str] = {}
        for part in mesh.gather_objects(self._found):
            found |= part
        return combined(found)

    @property
    def missing(self) -> set[str]:
        """Names of the tensors of the base that this process has not read."""
        return self.names - self._found.keys()

    def of_this_process(self) -> str:
        """The digest of the tensors that this process has read."""
        return combined(self._found)


def combined(found: Mapping[str, str]) -> str:
    """One digest, computed from the digests of all tensors."""
    return xxhash.xxh3_128("".join(f"{name} {found[name]}\n" for name in sorted(found)).encode()).hexdigest()


def write_base(base: Base, folder: Path) -> None:
    """Write the record of the base into a checkpoint's folder ``model``."""
    (folder / BASE).write_text(json.dumps(vars(base), indent=2) + "\n")


def read_base(assets: Path | None) -> Base | None:
    """The record of the base in a checkpoint; None for a checkpoint that holds a whole model.

    Args:
        assets: its folder ``model``.

    Raises:
        ValueError: the file cannot be read.
    """
    if assets is None or not (assets / BASE).is_file():
        return None
    try:
        values: dict[str, Any] = read_json(assets / BASE)
        return Base(values["digest"], values["weights"], values.get("revision"), values.get("quantization"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its {BASE} cannot be read ({error})") from None


def has_base(path: Path) -> bool:
    """Whether the newest checkpoint at ``path`` (a checkpoint or run folder) holds adapters beside a base."""
    return any((folder / MODEL / BASE).is_file() for folder in checkpoints_at(path)[:1])


def base_of(model: ModelConfig, digest: str) -> Base:
    """The record of the base for the checkpoints of a run."""
    return Base(digest, model.weights, model.revision, model.quantization.identity if model.quantization else None)


def refuse_other_base(found: str, saved: Base | None, model: ModelConfig, checkpoint: Path | None) -> None:
    """Refuse a base that is not the one on which the adapters of a checkpoint were trained.

    Raises:
        UserError: their digests differ.
    """
    if saved is None:
        return
    now = model.quantization.identity if model.quantization else None
    if saved.quantization != now:
        why = f"keeps the base in {in_words(now)}, but the adapters in {checkpoint} were trained on a base in "
        fix = f"write {in_words(saved.quantization, keys=True)}, or train new adapters (--fresh)"
        raise UserError(Problem("model.quantization", why + in_words(saved.quantization), fix))
    if saved.digest == found:
        return
    then = f"those of {saved.weights}" if saved.weights else "random weights of a seed"
    why = f"gives another base than the one that the adapters in {checkpoint} were trained on ({then})"
    fix = "name that base, with the same model.config and model.merged_adapters, or train new adapters (--fresh)"
    raise UserError(Problem("model.weights", why, fix, model.weights))


def in_words(quantization: Mapping[str, Any] | None, keys: bool = False) -> str:
    """A quantisation in words for messages and model cards; with ``keys``, as the overrides that set it."""
    if quantization is None:
        return "quantization=null" if keys else "full precision"
    if keys:
        named = [f"model.quantization.{key}={_plain(value)}" for key, value in quantization.items() if key != "method"]
        return " ".join([f"quantization={quantization['method']}", *named])
    rest = ", ".join(f"{key} {value}" for key, value in quantization.items() if key != "method")
    return f"{quantization['method']} ({rest})"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
