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
    stored_names: tuple[tuple[str, str], ...] = ()
    """(name in published files, name in the model) of modules that were renamed since the weights were published."""
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
