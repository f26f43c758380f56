"""Check that integer and float fields of trireme's own model configurations hold values of these types.

This check runs before the sizes are compared. Comparing a field of a wrong type would raise an error that does not name
the field.
"""

from __future__ import annotations

from typing import Any

KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}
"""Annotation -> the types that it takes. Fields with other annotations are not checked."""


def refuse_other_types(config: Any, cls: type) -> None:
    """Refuse numbers of ``config`` that do not have the types in its class's annotations.

    Raises:
        TypeError: the first field of another type, in the words of ``huggingface_hub.dataclasses.strict``.
    """
    for name, annotation in cls.__annotations__.items():
        kinds, value = KINDS.get(str(annotation)), getattr(config, name)
        if kinds is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise TypeError(f"Field '{name}' expected {annotation}, got {type(value).__name__} (value: {value!r})")
