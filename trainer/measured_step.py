"""Measure one training step for the run report: memory by category, bytes sent by collectives, pipeline timeline.

Measuring costs some time in that one step, and does not change its results. Bytes are not counted if blocks are
compiled, since torch would run them uncompiled under the counter, nor if weights are quantised.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..parallel.held_memory import held_bytes
from ..parallel.traffic import Traffic
from .callbacks.throughput import MIB, memory_mib

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")
Measured = dict[str, Any]


class MeasuredStep:
    """Measures the step between ``begin`` and ``end``; all ranks measure the same one."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._traffic: Traffic | None = None
        self._held: dict[str, int] = {}

    def begin(self) -> None:
        if (pipeline := self._pipeline) is not None:
            pipeline.times.begin()
        if self._counts:
            self._traffic = Traffic(strict=False)
            self._traffic.__enter__()

    def gradients(self) -> None:
        """Measure memory while the step's gradients exist."""
        self._held = _guarded(lambda: held_bytes(self.trainer.strategy)) or {}

    def end(self) -> list[Measured]:
        """The measurements of all ranks, in rank order, on every rank; a collective call."""
        traffic = self._traffic
        self.abandon()
        mesh, pipeline = self.trainer.mesh, self._pipeline
        after = _guarded(lambda: held_bytes(self.trainer.strategy)) or {}
        found: Measured = {
            "rank": mesh.rank,
            "host": socket.gethostname(),
            "memory": {name: max(self._held.get(name, 0), size) for name, size in after.items()},
            "total": round(memory_mib(mesh.device) * MIB),
            "sent": None if traffic is None else {kind: round(size) for kind, size in traffic.sent.items()},
            "uncounted": sorted(traffic.unknown) if traffic else [],
            "pipeline": mesh.pipeline_rank if not (mesh.data_rank or mesh.index("tensor")) else None,
            "actions": [tuple(action) for action in pipeline.times.actions] if pipeline is not None else [],
        }
        return mesh.gather_objects(found)

    def abandon(self) -> None:
        """Stop counting; also after a failure in the step."""
        if self._traffic is not None:
            self._traffic.__exit__(None, None, None)
            self._traffic = None
        if (pipeline := self._pipeline) is not None:
            pipeline.times.end()

    @property
    def _counts(self) -> bool:
        recipe = self.trainer.recipe
        computed = recipe.plan.compile or recipe.model.quantization is not None or recipe.model.qat is not None
        return self.trainer.mesh.world_size > 1 and not computed

    @property
    def _pipeline(self) -> Any:
        """The pipeline of this rank's stages; None under other plans."""
        return getattr(self.trainer.strategy, "pipeline", None)


def joined(ranks: Sequence[Measured], device: str) -> Measured:
    """Combine the measurements of all ranks into the values that a report shows.

    Returns:
        ``memory``: bytes by part on the rank that holds most, and ``total`` of the process (CPU) or of torch's
        allocations at their peak (CUDA); ``sent``: bytes by kind on the rank that sends most; ``timeline``: actions of
        the ranks of one pipeline, in seconds since the first one began.
    """
    most = max(ranks, key=lambda one: (sum(one["memory"].values()), one["total"]))
    counted = [one for one in ranks if one["sent"] is not None]
    sender = max(counted, key=lambda one: sum(one["sent"].values()), default=None)
    rows = sorted((one for one in ranks if one["actions"] and one["pipeline"] is not None), key=_place)
    began = min((action[3] for one in rows for action in one["actions"]), default=0.0)
    return {
        "device": device,
        "hosts": len({one["host"] for one in ranks}),
        "memory": {**most["memory"], "total": max(one["total"] for one in ranks)},
        "sent": sender and sender["sent"],
        "uncounted": sorted({name for one in counted for name in one["uncounted"]}),
        "timeline": [
            {
                "rank": one["rank"],
                "actions": [
                    [kind, stage, micro, round(start - began, 6), round(stop - began, 6)]
                    for kind, stage, micro, start, stop in one["actions"]
                ],
            }
            for one in rows
        ],
    }


def _place(one: Measured) -> int:
    return one["pipeline"]


def _guarded(look: Callable[[], dict[str, int]]) -> dict[str, int] | None:
    """The result; None if it fails, since a measurement must not end a run."""
    try:
        return look()
    except Exception:
        log.debug("memory by part was not measured", exc_info=True)
        return None
