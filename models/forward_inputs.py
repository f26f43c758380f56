"""The class that a head of an architecture has in transformers, and the inputs that it names, before it is built."""

from __future__ import annotations

import inspect
from typing import Any

from .heads import HEADS


def factory_of(kind: type, head: str) -> Any:
    """The Auto class that builds an architecture with a head; None if transformers has none.

    Args:
        kind: class of its configuration.
        head: key of ``HEADS``.
    """
    from transformers.models.auto import modeling_auto

    found = HEADS[head]
    first = getattr(modeling_auto, found.factory)
    if kind in first._model_mapping:
        return first
    also = getattr(modeling_auto, found.also) if found.also else None
    if also is not None and kind in also._model_mapping and "input_ids" in _parameters(also, kind):
        return also
    return None


def forward_inputs(config: Any, head: str) -> frozenset[str] | None:
    """Parameters that the forward pass of the model names; None for a class that transformers does not have.

    Args:
        config: its transformers configuration.
        head: key of ``HEADS``.
    """
    factory = factory_of(type(config), head) if head in HEADS else None
    return None if factory is None else _parameters(factory, type(config))


def _parameters(factory: Any, kind: type) -> frozenset[str]:
    found = factory._model_mapping[kind]
    model = found[0] if isinstance(found, list | tuple) else found
    return frozenset(inspect.signature(model.forward).parameters)
