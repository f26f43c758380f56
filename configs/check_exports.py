"""Refuse callbacks that export only adapters if other adapters were merged into the base model.

Adapters that were trained with ``model.merged_adapters`` belong to the sum of the base and the merged adapters. No
folder holds this sum, so such a run must export whole models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import Problem
from ..models.adapter_config import merged_below
from ..models.model_config import ModelConfig


def check_exports(model: ModelConfig, callbacks: Mapping[str, Any]) -> list[Problem]:
    """Problems of callbacks that export adapters only, in a run that merges other adapters into the base."""
    if model.adapter is None or not model.merged_adapters:
        return []
    from ..trainer.callbacks.export import Export

    alone = [name for name, each in callbacks.items() if isinstance(each, Export) and not each.writes_whole]
    said = (model.weights, model.merged_adapters)
    return [merged_below(f"callbacks.{name}.merge", *said, f"callbacks.{name}.merge=true", False) for name in alone]
