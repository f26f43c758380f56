"""The ``checkpoint`` section of a recipe: when and how checkpoints are written, what they contain, which ones are kept,
and whether a run ends with the weights of the best one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ...errors import refuse
from ..cadence import Every


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every: Every | None = None
    """Steps between checkpoints, or ``epoch``: one at the end of each pass. null writes only at the end."""
    at_end: bool = True
    """Write a checkpoint after the last step."""
    only_model: bool = False
    """Write the weights without the optimizer's state: a third of the size with AdamW. A run that resumes from such a
    checkpoint begins with zero moments, and says so."""
    keep_last: int | None = 2
    """Number of newest checkpoints to keep; null keeps all."""
    keep_best: int = 0
    """Number of checkpoints with the best ``metric`` to keep beside the newest; only evaluated steps count."""
    metric: str = "eval_loss"
    """Metric by which checkpoints are compared."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger ``metric`` is better."""
    load_best: bool = False
    """End the run with the weights of the checkpoint that is best by ``metric``: those that are exported, pushed and
    sampled at the end, and that ``trireme evaluate`` and ``predict`` take. The last checkpoint keeps those of the last
    step."""

    asynchronous: bool = True
    """Go on training while a checkpoint is written (one at a time); training waits only for a copy into CPU memory."""
    shared: bool | None = None
    """Whether all machines see the same run folder. null finds out when a run starts; true skips this test, for disks
    on which new files appear late on other machines; false refuses to start if two machines see the same folder."""
    deepspeed: bool = False
    """Also write DeepSpeed's own files (``deepspeed/`` in each checkpoint) for its tools, under a plan ``zero*``."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        for name in ("every", "keep_last"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                none = "never" if name == "every" else "all"
                yield f"{name}={value} must be at least 1; write 1 or more, or null for {none}"
        if self.keep_best < 0:
            yield f"keep_best={self.keep_best} must not be negative; write 0 to keep none"
        if self.load_best and not self.keep_best:
            yield f"load_best={self.load_best} needs a checkpoint that keep_best=0 removes; set checkpoint.keep_best=1"
