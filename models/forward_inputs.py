"""Find transformers' class for an architecture and head, and the parameters of its ``forward``; no model is built."""

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
    if also is None or kind not in also._model_mapping:
        return None
    # This Auto class gives most architectures a class of another head, or one that reads no tokens.
    with_several = _class(also, kind).__name__.endswith("ForPreTraining")
    return also if with_several and "input_ids" in _parameters(also, kind) else None


def forward_inputs(config: Any, head: str) -> frozenset[str] | None:
    """Parameters that the forward pass of the model names; None for a class that transformers does not have.

    Args:
        config: its transformers configuration.
        head: key of ``HEADS``.
    """
    factory = factory_of(type(config), head) if head in HEADS else None
    return None if factory is None else _parameters(factory, type(config))


def _parameters(factory: Any, kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(_class(factory, kind).forward).parameters)


def _class(factory: Any, kind: type) -> Any:
    found = factory._model_mapping[kind]
    return found[0] if isinstance(found, list | tuple) else found
