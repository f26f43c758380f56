"""Tracker for Trackio: report to local files, to a server of your own, or to a Space on the Hugging Face Hub.

Local files are stored where the library keeps them (``TRACKIO_DIR``), and ``trackio show`` displays them. A server
prints a write token when it starts; the token is given in the server's address or in ``TRACKIO_WRITE_TOKEN``. A Space
needs a login to the Hub (``hf auth login``).
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker


@dataclass(eq=False)
class Trackio(Tracker):
    """Reports to Trackio."""

    space: str | None = None
    """Space on the Hub (``owner/name``); null takes ``TRACKIO_SPACE_ID``, else none."""
    server: str | None = None
    """Address of a Trackio server of one's own; null takes ``TRACKIO_SERVER_URL``, else local files."""

    TITLE: ClassVar = "Trackio"
    LIBRARY: ClassVar = "trackio"
    PACKAGE: ClassVar = "trackio"
    KEY: ClassVar = "trackio"

    def place(self) -> str:
        return f"{self._space} {self._server}"

    @property
    def _space(self) -> str | None:
        return self.space or os.environ.get("TRACKIO_SPACE_ID")

    @property
    def _server(self) -> str | None:
        return self.server or os.environ.get("TRACKIO_SERVER_URL")

    def login(self) -> None:
        if self._space:
            from huggingface_hub import whoami
            from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

            try:
                whoami()
            except (LocalTokenNotFoundError, HfHubHTTPError) as error:
                raise NoLogin(f"the Hub refuses the login: {error}", "hf auth login, or set HF_TOKEN") from None
        elif self._server and "write_token=" not in self._server and "TRACKIO_WRITE_TOKEN" not in os.environ:
            fix = "set TRACKIO_WRITE_TOKEN to the token that the server prints"
            raise NoLogin(f"there is no write token for {self._server}", fix)

    def start(self, run: AboutRun) -> str:
        # A name stands for one run: another run of the same name would be continued.
        found = run.id or f"{run.name}-{secrets.token_hex(2)}"
        with quietly():
            self._run: Any = self.module().init(
                project=run.project,
                name=found,
                group=run.group,
                config=run.flat | {"trial": run.trial, "tags": ", ".join(run.tags)},
                resume="allow",
                space_id=self._space,
                server_url=self._server,
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.module("trackio.context_vars").current_run.set(None)  # else the run is ended once more at exit
        return found

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._run.log(dict(line.numbers), step=line.step)

    def keep(self, kind: str, path: Path, step: int) -> None:
        trackio = self.module()
        if kind == "curve":
            self._run.log({"curve": trackio.Image(str(path))}, step=step)
            return
        name = f"{self._run.name}-{'checkpoint' if kind == 'checkpoints' else kind}"
        artifact = trackio.Artifact(name, type="model" if kind == "checkpoints" else "file")
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def finish(self, status: Status, reason: str) -> None:
        self._run.log({"finished": float(status == "finished")})
        with quietly():
            self._run.finish()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Context in which the library's prints are swallowed: the log of the run tells where it reports to."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
