"""Write a recipe's values into a DeepSpeed JSON, and report the values in the JSON that contradict the recipe."""

from __future__ import annotations

from typing import Any

from ...errors import Problem
from . import json_keys


class JsonFiller:
    """Writes the recipe's values into a JSON and collects contradictions to them."""

    def __init__(self, config: dict[str, Any], prefix: str = json_keys.FILE) -> None:
        self.config = config
        self.prefix = prefix
        self.problems: list[Problem] = []

    def set(self, path: str, value: Any, source: str, label: str | None = None) -> None:
        """Write ``value`` at ``path`` if the key is missing or ``auto``; refuse any other value there.

        Args:
            source: the recipe key that decides the value, for the message.
            label: how the recipe writes the value, if it differs from the JSON.
        """
        *parents, key = path.split(".")
        block = self.config
        for parent in parents:
            block = block.setdefault(parent, {})
            if not isinstance(block, dict):
                return  # ``unknown_keys`` reports it as a wrong form
        given = block.get(key, "auto")
        if given == "auto":
            block[key] = value
        elif not equal_as_json(given, value):
            label = value if label is None else label
            self.refuse(
                path, f"contradicts {source} = {label}", f'write "auto", or change {source} to agree with it', given
            )

    def auto(self, path: str, value: Any) -> None:
        """Replace ``auto`` at ``path``; a missing key stays missing."""
        *parents, key = path.split(".")
        block: Any = self.config
        for parent in parents:
            block = block.get(parent) if isinstance(block, dict) else None
        if isinstance(block, dict) and block.get(key) == "auto":
            block[key] = value

    def refuse(self, path: str, why: str, fix: str, value: Any = None) -> None:
        self.problems.append(Problem(self.prefix + path, why, fix, value))


def zero_block(config: dict[str, Any]) -> dict[str, Any]:
    """The ``zero_optimization`` block; empty (stage 0) if there is none or it is malformed."""
    block = config.get("zero_optimization", {})
    return block if isinstance(block, dict) else {}


def offload_device(config: dict[str, Any], name: str) -> str:
    """Device of ``offload_optimizer`` or ``offload_param``: ``none``, ``cpu`` or ``nvme``."""
    block = zero_block(config).get(name) or {}
    return block.get("device", "none") if isinstance(block, dict) else "none"


def equal_as_json(given: Any, value: Any) -> bool:
    """Whether two values are equal in JSON, where 1 equals 1.0 but not true."""
    if isinstance(given, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(given) == len(value) and all(equal_as_json(a, b) for a, b in zip(given, value, strict=True))
    if isinstance(given, bool) or isinstance(value, bool):
        return given is value
    return given == value
