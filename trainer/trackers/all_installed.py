"""``tracker=all``: report to every experiment tracker whose library is installed and whose login works."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..callbacks.callback import Callback
from .registry import installed_trackers
from .tracker import Tracker
from .tracker_options import TrackerOptions

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)


@dataclass(eq=False)
class AllInstalled(TrackerOptions):
    """Adds a callback for each tracker that can be used. A service without a login is left out, and the log says so."""

    def __post_init__(self) -> None:
        self.trackers: dict[str, Tracker] = {}
        self.left_out: list[str] = []
        for cls in installed_trackers():
            kept: list[Any] = [kind for kind in self.artifacts if kind in cls.KEEPS]
            named = (self.project, self.name, self.group, list(self.tags), kept, self.system_seconds, self.patience)
            try:
                self.trackers[cls.KEY] = cls(*named)
            except UserError as error:
                whys = [each.why if isinstance(each, Problem) else each for each in error.problems]
                self.left_out.append(f"{cls.KEY} ({'; '.join(whys)})")

    def on_init_end(self, trainer: "Trainer", state: "TrainerState", control: "Control") -> None:
        """Add the trackers that the main rank can use; on the other ranks, which do not report, idle callbacks."""
        found = [key for key in self.trackers if key not in trainer.callbacks]
        keys = trainer.mesh.broadcast_object(found if trainer.mesh.is_main else None)
        for key in keys or ():  # type: ignore[union-attr]
            trainer.callbacks.add(key, self.trackers[key] if trainer.mesh.is_main else Callback())
        log.info("this run reports to %s", ", ".join(found) or "no tracker: none is installed")
        if self.left_out:
            log.info("trackers that are left out: %s", "; ".join(self.left_out))
