"""The base class of trackers that can also write files instead of using a network (``mode=offline``).

Type annotations are not postponed here: the check of a recipe resolves them in the module of the tracker itself.
"""

from dataclasses import dataclass
from typing import Literal

from .tracker import Tracker


@dataclass(eq=False)
class OfflineMode(Tracker):
    """A tracker that reports to its service, or writes files."""

    mode: Literal["online", "offline"] = "online"
    """``offline`` writes files, which the service's own command uploads later."""

    @property
    def offline(self) -> bool:
        """Whether no server is asked."""
        return self.mode == "offline"

    def place(self) -> str:
        return f"{self.mode} {super().place()}"

    def login(self) -> None:
        if not self.offline:
            self.log_in()

    def log_in(self) -> None:
        """Ask the service, as ``login`` does.

        Raises:
            NoLogin: this run may not report to it.
        """
        raise NotImplementedError
