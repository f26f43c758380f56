"""A trial in the eyes of Ray: an actor that reserves a trial's resources, and tells Ray what the search knows of it.

It runs in a process of Ray and imports nothing heavy. What Ray takes for a checkpoint is the number of a trial and a
step in a file of JSON: the run itself has the weights.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

FILE = "state.json"


def ray_trial(path: str, metric: str, on_gpus: bool) -> Any:
    """The class for ``tune.Tuner``.

    Args:
        path: of the socket at which the search listens.
        metric: name under which Ray gets values.
        on_gpus: whether Ray has reserved GPUs, which it names in CUDA_VISIBLE_DEVICES.
    """
    from ray import tune

    class RayTrial(tune.Trainable):
        """Asks the search; ``setup`` to ``cleanup`` are called by Ray."""

        def setup(self, config: dict[str, Any]) -> None:
            self._start: dict[str, Any] | None = None
            self._line: Any = None

        def step(self) -> dict[str, Any]:
            if self._line is None:
                self._line = _connect(path)
                devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if on_gpus else ""
                self._say("begin", values=self.config, start=self._start, devices=devices)
            found = self._say("step")
            if "error" in found:
                raise RuntimeError(found["error"])
            return {metric: found["value"], "step": found["step"], "done": found["done"]}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / FILE).write_text(json.dumps(self._say("save")))

        def load_checkpoint(self, checkpoint: Any) -> None:
            self._start = json.loads((Path(checkpoint) / FILE).read_text())

        def cleanup(self) -> None:
            if self._line is not None:
                self._say("stop")
                self._line.close()

        def _say(self, do: str, **more: Any) -> dict[str, Any]:
            line = json.dumps({"do": do, "id": self.trial_id, **more}, default=lambda number: number.item())  # of numpy
            self._line.write(line.encode() + b"\n")
            self._line.flush()
            return json.loads(self._line.readline() or b'{"error": "the search has ended"}')

    return RayTrial


def _connect(path: str) -> Any:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.connect(path)
    return channel.makefile("rwb")
