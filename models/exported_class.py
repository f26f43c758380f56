"""Find the class whose ``from_pretrained`` loads an exported model, and import the user's own classes that it needs.

If the model uses the user's own code, this code is imported first, because transformers does not know the classes in it
before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .heads import HEADS
from .locate import locate
from .register_classes import register_classes


def exported_class(model: Mapping[str, Any], head: str) -> Any:
    """The class whose ``from_pretrained`` loads an export: the one that the recipe names, else the head's Auto class.

    Args:
        model: the ``model`` part of a recipe, as plain data.
        head: the output layer that the task asks for.
    """
    import_own_classes(model)
    if model.get("architecture"):
        return locate(model["architecture"])
    from transformers.models.auto import modeling_auto

    return getattr(modeling_auto, HEADS[head].factory)


def import_own_classes(model: Mapping[str, Any]) -> None:
    """Import the family and the class that a recipe names by their dotted paths, and trireme's own classes, so that
    transformers knows them."""
    register_classes()
    for path in (model.get("family"), model.get("architecture")):
        if path and "." in path:
            locate(path)
