"""Read a model's hidden size from its configuration. The field has different names in different architectures."""

from __future__ import annotations

from typing import Any

FIELDS = ("hidden_size", "d_model", "hidden_sizes", "embed_dims", "embed_dim", "dim", "text_config", "vision_config")
"""Fields that hold the width, or widths of several stages, or a configuration of their own; the first one counts."""


def hidden_size(config: Any) -> int:
    """The largest width of the model's hidden states; 1 if its configuration does not tell."""
    for name in FIELDS:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, list | tuple) and value:
            return max(value)
        if value is not None and hasattr(value, "to_dict"):
            return hidden_size(value)
    return 1
