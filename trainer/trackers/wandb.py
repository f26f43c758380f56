"""Tracker for Weights & Biases: report to its server, or with ``mode=offline`` write files for ``wandb sync``.

The key is W&B's own (``wandb login``, or ``WANDB_API_KEY``). ``WANDB_MODE``, ``WANDB_ENTITY`` and ``WANDB_BASE_URL``
are used where the recipe sets nothing. ``step`` is the x axis of all metrics. A run that was interrupted is marked as
preempted.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker

NO_ANSWER = re.compile(r"did not respond|Failed to execute API request|timed? ?out|connect|resolve|unreachable", re.I)
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
"""Values of ``WANDB_MODE`` that W&B knows."""


@dataclass(eq=False)
class Wandb(Tracker):
    """Reports to W&B."""

    entity: str | None = None
    """User or team that owns the project; null takes that of the login."""
    mode: Literal["online", "offline"] | None = None
    """``offline`` writes files that ``wandb sync`` uploads later; null takes ``WANDB_MODE``, else online."""

    TITLE: ClassVar = "W&B"
    LIBRARY: ClassVar = "wandb"
    PACKAGE: ClassVar = "'trireme-train[wandb]'"
    KEY: ClassVar = "wandb"
    LOGGERS: ClassVar = ("wandb",)
    VARIABLES: ClassVar = ("WANDB_BASE_URL", "WANDB_API_KEY")

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if self.mode is None and (set_to := os.environ.get("WANDB_MODE", "online")) not in MODES:
            yield f"WANDB_MODE={set_to!r} is unknown; use online or offline, or unset it"

    @property
    def offline(self) -> bool:
        """Whether no server is asked."""
        return (self.mode or os.environ.get("WANDB_MODE", "online")) != "online"

    def place(self) -> str:
        return f"{self.offline} {super().place()}"

    def login(self) -> None:
        if self.offline:
            return
        wandb, errors = self.module(), self.module("wandb.errors")
        wandb.setup(wandb.Settings(silent=True))
        fix = "wandb login, or set WANDB_API_KEY; without a network callbacks.wandb.mode=offline"
        try:
            if not wandb.login(verify=True, prompt=False):
                raise NoLogin("there is no key", fix)
        except (errors.AuthenticationError, errors.UsageError) as error:
            # W&B wraps an outage into the error of a wrong key; the server's own address says nothing of it.
            if NO_ANSWER.search(re.sub(r"\w+://\S+", "", str(error))):
                raise ConnectionError(str(error)) from None
            raise NoLogin(f"the key is refused: {error}", fix) from None

    def start(self, run: AboutRun) -> str:
        wandb = self.module()
        wandb.setup(wandb.Settings(silent=True))
        found = run.id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # of a sweep (``search=wandb``)
        self._run: Any = wandb.init(
            entity=self.entity,
            project=run.project,
            name=run.name,
            id=found,
            resume="allow",
            group=run.group,
            tags=run.tags or None,
            config=run.config | {"trial": run.trial},
            dir=run.folder,
            mode="offline" if self.offline else "online",
            # The console is the run's own log, and figures of the machine are those of all trackers.
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True, save_code=False),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return found

    def view(self) -> str:
        return f"wandb sync {Path(self._run.dir).parent}" if self.offline else self._run.url or ""

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._run.log({"step": line.step, "_timestamp": line.time, **line.numbers})

    def keep(self, kind: str, path: Path, step: int) -> None:
        wandb = self.module()
        if kind == "checkpoints":
            artifact = wandb.Artifact(f"{self._run.id}-checkpoint", type="model", metadata={"step": step})
            artifact.add_dir(str(path), skip_cache=True)
            self._run.log_artifact(artifact, aliases=["latest", path.name])
        elif kind == "curve":
            self._run.log({"step": step, "curve": wandb.Image(str(path))})
        else:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, status: Status, reason: str) -> None:
        self._run.summary.update({"status": status, "reason": reason})
        if status == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if status == "finished" else 1)
