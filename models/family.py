"""The description of a model family: names of the parts of an architecture, as data.

Each file in ``models/families/`` holds one ``ModelFamily``. The architecture itself comes from ``transformers``. The
names let plans wrap, cut and split a model without knowing its code. This file does not import torch, so listing and
checking families is instant.
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

    Module paths are relative to a block. A path that a block does not have is skipped, because blocks of one model may
    differ. Every parameter of a block must belong to a module that is named here.
    """

    inputs: tuple[str, ...]
    """Modules at which hidden states enter the split part. Gradients of the hidden states are summed there; under
    sequence parallel the sequence is gathered there."""
    column: tuple[str, ...]
    """Modules whose outputs are split: each rank computes some heads, or some of the inner features. All parameters are
    split by their first dimension (the second of a weight in GPT-2's ``Conv1D``)."""
    row: tuple[str, ...]
    """Projections whose inputs are split. The ranks' partial outputs are summed, and the bias is added once."""
    norms: tuple[str, ...] = ()
    """Modules that see whole hidden states; under sequence parallel each rank runs them on its part of the sequence."""
    fused: tuple[tuple[str, int], ...] = ()
    """(path, parts) of column and row projections whose split dimension holds several matrices one after the other
    (query, then key, then value). Each rank holds a shard of every matrix."""
    per_head: tuple[str, ...] = ()
    """Modules applied to every head with the same weights. Each rank sees only its heads, so gradients are summed."""
    key_value: tuple[str, ...] = ()
    """Key and value projections with heads of their own. They are split like ``column``, but every rank keeps a single
    head whole."""
    key_value_heads: str | None = None
    """Configuration field with the number of key and value heads, if it may differ from the number of query heads."""
    groups: tuple[str, str] | None = None
    """(path, attribute) of the number of query heads per key head; it is divided where every rank keeps the single key
    head."""
    divided: tuple[tuple[str, str], ...] = ()
    """(path, attribute) of counts of heads or features that a module keeps; they are divided by the number of ranks."""
    splits: tuple[tuple[str, int], ...] = (("num_attention_heads", 1),)
    """(configuration field, unit) of sizes that are split. Each must be a multiple of unit x tensor ranks, or None if
    it follows from others."""


@dataclass(frozen=True)
class ModelFamily:
    """Names of the parts of one architecture. Module paths are those of ``named_modules()``."""

    name: str
    """Name in recipes: ``model.family``."""
    title: str
    """Name in messages and tables."""
    model_type: str
    """``model_type`` of its transformers configuration."""
    paper: str
    """Address of the paper or page that describes the architecture."""
    embedding: str
    """Path of the token embedding."""
    blocks: str
    """Path of the list of transformer blocks. Blocks are the unit of wrapping, recompute, compile and pipeline cuts."""
    final_norm: str
    """Path of the norm after the last block."""
    head: str
    """Path of the language model head."""
    context: str = "max_position_embeddings"
    """Configuration field with the greatest sequence length."""
    layers: str = "num_hidden_layers"
    """Configuration field with the number of blocks."""
    entry: tuple[tuple[str, Literal["zero", "identity"]], ...] = ()
    """(path, replacement on later pipeline stages) of modules between the token embedding and the first block. A
    position embedding, which is added, is replaced by ``zero``; a dropout or norm of the embeddings by ``identity``."""
    first_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on later pipeline stages) of numbers applied to embeddings, such as a normaliser."""
    last_stage_only: tuple[tuple[str, str, object], ...] = ()
    """(path, attribute, value on earlier pipeline stages) of settings applied to logits, such as a soft cap."""
    tensor: TensorPlan | None = None
    """How blocks are split over tensor ranks; None if the family has no tensor parallelism yet."""
    attention: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")
    """Attention kernels that transformers offers for the family. The first is the default: the best one that needs no
    further package."""
    stored_names: tuple[tuple[str, str], ...] = ()
    """(name in published files, name in the model) of modules that were renamed since the weights were published."""
    fp16: str = ""
    """A clause on what goes wrong in fp16, as in "overflows in attention under fp16"; empty if no trouble is known."""
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
