"""``AboutRun``: what an experiment tracker is told when a run begins, such as its name, id, full recipe and machine."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..loop import Trainer
    from .tracker import Tracker


@dataclass(frozen=True)
class AboutRun:
    """One start of a run."""

    folder: Path
    """The run folder."""
    project: str
    name: str
    """Name of the run, that of its folder unless the recipe gives one."""
    group: str | None
    """Name that runs of one study or sweep share."""
    trial: int | None
    """Number of the trial in its study."""
    tags: list[str]
    id: str | None
    """Id under which the tracker knows the run; None for a new one."""
    step: int
    """Step from which training goes on; 0 at the beginning."""
    config: dict[str, Any]
    """The resolved recipe, and under ``about`` what no recipe says: versions, ranks, parameters, the machine."""

    @property
    def flat(self) -> dict[str, str | int | float | bool]:
        """``config`` by dotted keys; lists as JSON, and null as a text."""
        return dict(_flat(self.config, ""))


def about_run(trainer: Trainer, tracker: Tracker, found: str | None) -> AboutRun:
    """The description of the run for ``tracker``; ``found``: the id in the run folder."""
    run = trainer.recipe.run
    return AboutRun(
        folder=trainer.run_dir,
        project=tracker.project,
        name=tracker.name or trainer.run_dir.absolute().name,
        group=tracker.group or getattr(run, "group", None),
        trial=getattr(run, "trial", None),
        tags=list(tracker.tags),
        id=found,
        step=trainer.state.step,
        config={**dataclasses.asdict(trainer.recipe), "about": _facts(trainer)},
    )


def _facts(trainer: Trainer) -> dict[str, Any]:
    import torch
    import transformers

    from ...models.quantization.footprint import logical_count
    from ...version import __version__

    device = trainer.mesh.device
    return {
        "trireme": __version__,
        "torch": str(torch.__version__),  # a class of its own, which YAML does not know
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "ranks": trainer.mesh.world_size,
        "parameters": logical_count(trainer.blueprint),
        "run_dir": str(trainer.run_dir.absolute()),
    }


def _flat(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str | int | float | bool):
        yield path, value
    else:
        yield path, json.dumps(value, default=str)
