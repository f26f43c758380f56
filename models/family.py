"""A family: what trireme must know of a model architecture, as data.

One small file per family in ``models/families/`` holds one ``ModelFamily``. The architecture itself comes from
``transformers``; a family only names its parts, so that plans can wrap, cut and split it without knowing its code.
No torch is imported here: listing and checking families is instant.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from typing import Literal


@dataclass(frozen=True)
class TensorPlan:
    """How one block is split over tensor ranks, as in Megatron-LM (https://arxiv.org/abs/1909.08053).

    Module paths are relative to a block. A path that a block does not have is passed over, because blocks of one model
    may differ; but every parameter of a block must belong to a module that is named here.
    """

    inputs: tuple[str, ...]
    """Modules at which hidden states enter the split part: their gradients are summed there, and under sequence
    parallel the sequence is brought together."""
    column: tuple[str, ...]
    """Modules whose outputs are split: each rank computes some heads, or some of the inner features. All parameters are
    split by their first dimension (the second of a weight in GPT-2's ``Conv1D``)."""
    row: tuple[str, ...]
    """Projections whose inputs are split: the ranks' parts of the output are summed, the bias is added once."""
    norms: tuple[str, ...] = ()
    """Modules that see whole hidden states; under sequence parallel each rank runs them on its part of the sequence."""
    fused: tuple[tuple[str, int], ...] = ()
    """(path, parts) of column and row projections whose split dimension holds several matrices one after the other
    (query, then key, then value): a rank holds its piece of each."""
    per_head: tuple[str, ...] = ()
    """Modules applied to every head with the same weights: each rank sees its heads, so gradients are summed."""
    key_value: tuple[str, ...] = ()
    """Key and value projections with heads of their own: split as ``column``; a single head is kept by every rank."""
    key_value_heads: str | None = None
    """Configuration field with the number of key and value heads, where it may differ from that of query heads."""
    groups: tuple[str, str] | None = None
    """(path, attribute): query heads per key head, divided where the single key head is kept by every rank."""
    divided: tuple[tuple[str, str], ...] = ()
    """(path, attribute): counts of heads or features kept on a module, which become those of one rank."""
    splits: tuple[tuple[str, int], ...] = (("num_attention_heads", 1),)
    """(configuration field, unit): what is split; a multiple of unit x tensor ranks, or None (follows from others)."""


@dataclass(frozen=True)
class ModelFamily:
    """Names of the parts of one architecture. Module paths are those of ``named_modules()``."""

    name: str
    """Name in recipes: ``model.family``."""
    title: str
    """What a person calls it."""
    model_type: str
    """``model_type`` of its transformers configuration."""
    paper: str
    """Where the architecture is described."""
    embedding: str
    """Token embedding."""
    blocks: str
    """The list of transformer blocks: the unit of wrapping, recompute, compile and pipeline cuts."""
    final_norm: str
    """Norm after the last block."""
    head: str
    """Language model head."""
    context: str = "max_position_embeddings"
    """Configuration field with the longest sequence."""
    layers: str = "num_hidden_layers"
    """Configuration field with the number of blocks."""
    entry: tuple[tuple[str, Literal["zero", "identity"]], ...] = ()
    """(path, what takes its place on later pipeline stages): what the model does to embeddings before its first block.
    A position embedding that is added becomes ``zero``, a dropout or norm of the embeddings ``identity``."""
    first_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on later pipeline stages) of numbers applied to embeddings, such as a normaliser."""
    last_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on earlier pipeline stages) of what is applied to logits, such as a soft cap."""
    tensor: TensorPlan | None = None
    """How blocks are split over tensor ranks; None where nobody has written it yet."""
    attention: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")
    """Attention kernels that transformers has for it, the best that needs nothing installed first."""
    stored_names: tuple[tuple[str, str], ...] = ()
    """(name in published files, name in the model) of modules that were renamed since the weights were published."""
    fp16: str = ""
    """What is known to go wrong in fp16, as a clause; empty where nothing is."""
    config_extras: tuple[str, ...] = field(default=())
    """Keyword arguments that the configuration class takes beside its declared fields."""


@cache
def families() -> dict[str, ModelFamily]:
    """All families by name; every module of ``models/families`` defines ``FAMILY``."""
    from . import families as package

    modules = [
        importlib.import_module(f"{package.__name__}.{info.name}") for info in pkgutil.iter_modules(package.__path__)
    ]
    return {module.FAMILY.name: module.FAMILY for module in sorted(modules, key=lambda module: module.__name__)}
