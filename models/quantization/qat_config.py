"""The dataclass of a recipe's ``model.qat`` part: quantisation-aware training.

The weights stay in fp32 and are trained, but each forward pass computes with their rounded values. Gradients pass
through the rounding unchanged (https://arxiv.org/abs/1712.05877, section 3). A model trained like this loses less
quality when it is quantised later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import refuse


@dataclass
class QatConfig:
    """Which rounding the linear layers are trained for."""

    method: Literal["int4", "int8"] = "int4"
    """``int4``: 4-bit integers with a scale for each group of inputs, the numbers of ``quantization=torchao_int4``;
    ``int8``: 8-bit integers with a scale for each row."""
    group_size: int = 32
    """Inputs that share a scale, for ``int4``."""
    skip: list[str] = field(default_factory=list)
    """Layers whose weights are not rounded: last parts of their names, or patterns. Heads and tied layers never are."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.group_size < 2 or self.group_size % 2:
            yield f"group_size={self.group_size} must be even and positive; use 32"


def qat_of(values: Any) -> QatConfig | None:
    """The typed part of a recipe that was read back as plain data."""
    return QatConfig(**values) if isinstance(values, dict) else values
