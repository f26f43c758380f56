"""The options that all trackers share; ``tracker=all`` passes them on to each tracker."""

from dataclasses import dataclass, field
from typing import Literal

from ..callbacks.callback import Callback


@dataclass(eq=False)
class TrackerOptions(Callback):
    """A callback with these options."""

    project: str = "trireme"
    """Project (experiment, repository ...) that collects runs."""
    name: str | None = None
    """Name of the run there; null takes that of the run folder."""
    group: str | None = None
    """Name that runs of one study or sweep share; null takes ``run.group``."""
    tags: list[str] = field(default_factory=list)
    """Labels of the run."""
    artifacts: list[Literal["checkpoints", "curve", "samples", "log"]] = field(default_factory=list)
    """Files to keep there: every checkpoint, the curve plot, written samples, the log."""
    system_seconds: float | None = 30.0
    """Seconds between figures of the machine and of the main rank's process; null reports none."""
    patience: float = 120.0
    """Most seconds that the end of a run waits for what is still on its way."""
