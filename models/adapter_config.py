"""The keys ``model.adapter`` and ``model.merged_adapters`` of a recipe: LoRA adapters that are trained on a frozen base
model, and adapters that are merged into the base before training.

LoRA (https://arxiv.org/abs/2106.09685) trains two small matrices beside each chosen linear layer. rsLoRA
(https://arxiv.org/abs/2312.03732) divides their product by the square root of the rank instead of the rank. DoRA
(https://arxiv.org/abs/2402.09353) also trains the norm of each row of the adapted weight. LoRA+
(https://arxiv.org/abs/2402.12354) gives the second matrix a higher learning rate.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..errors import Problem, refuse
from .adapter_plan import AdapterPlan

ALL_LINEAR = "all-linear"
RANK = 8
"""Rank where neither the recipe nor a folder says one."""


@dataclass
class AdapterConfig:
    """Small matrices that are added to the frozen base and trained."""

    REPLACED: ClassVar[dict[str, tuple[str, str]]] = {
        theirs: ("has another name in trireme", f"write {ours}")
        for theirs, ours in (
            ("r", "model.adapter.rank"),
            ("lora_r", "model.adapter.rank"),
            ("lora_alpha", "model.adapter.alpha"),
            ("lora_dropout", "model.adapter.dropout"),
            ("target_modules", "model.adapter.targets"),
            ("exclude_modules", "model.adapter.exclude"),
            ("use_rslora", "model.adapter.rslora"),
            ("use_dora", "model.adapter.dora"),
            ("init_lora_weights", "model.adapter.init"),
            ("loraplus_lr_ratio", "model.adapter.lr_ratio"),
        )
    }
    path: str | None = None
    """Folder of an adapter that peft has saved, with which training begins. Its rank, alpha, targets and variant are
    then those of the folder; keys that are given here must agree with it. Null begins a new adapter."""
    rank: int | None = None
    """Rank of the two matrices; null takes 8, or that of ``path``."""
    alpha: float | None = None
    """The product of the two matrices is scaled by alpha / rank; null takes twice the rank, or that of ``path``."""
    targets: str | list[str] | None = None
    """Layers with an adapter: ``all-linear`` (all but heads), a list of the last parts of their names, or one regular
    expression for whole names. Null takes ``all-linear``, or those of ``path``."""
    exclude: list[str] = field(default_factory=list)
    """Layers without an adapter although ``targets`` names them: last parts of their names, or regular expressions for
    whole names."""
    modules_to_save: list[str] | None = None
    """Modules that are trained fully, without adapters, such as ``[embed_tokens, lm_head]``: last parts of their
    names. Null takes none, or those of ``path``."""
    dropout: float = 0.0
    """Dropout of the inputs of adapters."""
    init: Literal["default", "gaussian", "random"] = "default"
    """First values. ``default``: the first matrix as a linear layer, the second zero, so that training begins with the
    base; ``gaussian``: the first normal with deviation 1 / rank; ``random``: both as linear layers."""
    rslora: bool | None = None
    """Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)."""
    dora: bool | None = None
    """Also train the length of each row of the weights (DoRA)."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Last part of a layer's name, or a regular expression -> its rank."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Last part of a layer's name, or a regular expression -> its alpha."""
    lr_ratio: float = 1.0
    """Learning rate of the second matrix as a multiple of ``optimizer.lr`` (LoRA+ proposes 16)."""

    def __post_init__(self) -> None:
        self.plan: AdapterPlan | None = None
        """Layers and scales in a checkpoint, which then count instead of all keys but ``dropout`` and ``lr_ratio``.
        No key of a recipe, and not written with it."""
        refuse(self._flaws())

    def as_planned(self, plan: AdapterPlan) -> AdapterConfig:
        """A copy of this configuration, with the layers and scales of a checkpoint."""
        made = copy.copy(self)
        made.plan = plan
        return made

    def _flaws(self) -> Iterator[str]:
        ranks = {"rank": self.rank, **{f"rank_pattern.{key}": rank for key, rank in self.rank_pattern.items()}}
        for name, rank in ranks.items():
            if rank is not None and rank < 1:
                yield f"{name}={rank} trains nothing; use 8 or so, or leave model.adapter out"
        alphas = {"alpha": self.alpha, **{f"alpha_pattern.{key}": alpha for key, alpha in self.alpha_pattern.items()}}
        for name, alpha in alphas.items():
            if alpha is not None and not alpha > 0:
                yield f"{name}={alpha} must be positive, since it scales the adapter; use twice the rank"
        if not 0 <= self.dropout < 1:
            yield f"dropout={self.dropout} must be at least 0 and below 1; use 0.05 or so"
        if not (self.lr_ratio > 0 and math.isfinite(self.lr_ratio)):
            yield f"lr_ratio={self.lr_ratio} must be positive; use 1 for one learning rate, or 16"
        if self.targets == [] or self.targets == "":
            yield f"targets={self.targets!r} names no layer; use all-linear, or names such as [q_proj, v_proj]"
        if self.path is not None and self.init != "default":
            yield f"init={self.init!r} has no effect, since model.adapter.path gives the first values; leave it out"
        yield from self._pattern_flaws()

    def _pattern_flaws(self) -> Iterator[str]:
        patterns = {"targets": [self.targets] if isinstance(self.targets, str) else []}
        patterns |= {"rank_pattern": list(self.rank_pattern), "alpha_pattern": list(self.alpha_pattern)}
        patterns |= {"exclude": self.exclude}
        for name, texts in patterns.items():
            for text in texts:
                try:
                    re.compile(text)
                except re.error as error:
                    yield f"{name}={text!r} is not a regular expression ({error}); correct it, or give a list of names"
                    continue
                near = difflib.get_close_matches(text.lower(), [ALL_LINEAR], n=1, cutoff=0.8)
                if name == "targets" and text != ALL_LINEAR and near:
                    yield f"targets={text!r} is not known; did you mean {ALL_LINEAR}?"


@dataclass
class MergedAdapter:
    """An adapter that is added to the base before training, and is not trained."""

    path: str
    """Folder of an adapter that peft has saved."""
    weight: float = 1.0
    """Factor of what the adapter adds to the base."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight={self.weight} must be finite; use 1")


def adapter_of(values: Any) -> AdapterConfig | None:
    """The typed part of a recipe that was read back as plain data."""
    return AdapterConfig(**values) if isinstance(values, dict) else values


def merged_of(values: dict[str, Any] | None) -> dict[str, MergedAdapter]:
    """The typed ``model.merged_adapters`` part of a recipe that was read back as plain data."""
    return {name: MergedAdapter(**one) if isinstance(one, dict) else one for name, one in (values or {}).items()}


def merged_below(field: str, base: str | None, merged: Iterable[str], merge: str, value: Any = None) -> Problem:
    """The problem of a peft folder that cannot be written, since other adapters are merged into the base of these.

    Args:
        merge: how the user asks for the whole model.
    """
    names = ", ".join(merged)
    why = f"has adapters that need {base} with model.merged_adapters ({names}) merged into it, but peft would load "
    why += "the folder's adapters onto that base without the merged ones"
    fix = f"write the whole model ({merge}); for a folder of adapters, merge the others first and train on the result"
    return Problem(field, why, fix, value)
