"""Names of the inputs that a model takes, by its class in transformers, before it is built."""

from __future__ import annotations

import inspect
from typing import Any

from .heads import HEADS


def forward_inputs(config: Any, head: str) -> frozenset[str] | None:
    """Parameters that the forward pass of the model names; None for a class that transformers does not have.

    Args:
        config: its transformers configuration.
        head: key of ``HEADS``.
    """
    from transformers.models.auto import modeling_auto

    if head not in HEADS:
        return None
    classes = getattr(modeling_auto, HEADS[head].factory)._model_mapping
    if type(config) not in classes:
        return None
    found = classes[type(config)]
    kind = found[0] if isinstance(found, list | tuple) else found
    return frozenset(inspect.signature(kind.forward).parameters)
