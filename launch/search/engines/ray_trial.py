"""The Ray actor that stands for one trial of a hyperparameter search. It does not train: over a socket it passes Ray's
hyperparameters and orders (step, save, stop) to the search, which trains the trial, and gets metric values for Ray. A
stopper ends Ray's loop when the search has ended.

Ray reserves the trial's resources for the actor, which runs in a process of Ray and imports nothing heavy. Its
checkpoint is a JSON file with the number of a trial and a step; the weights are in the trial's run folder.
"""

from __future__ import annotations

import importlib
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
    tune = importlib.import_module("ray.tune")

    class RayTrial(tune.Trainable):
        """Asks the search; ``setup`` to ``cleanup`` are called by Ray."""

        def setup(self, config: dict[str, Any]) -> None:
            self.begins_from: dict[str, Any] | None = None
            self.line: Any = None

        def step(self) -> dict[str, Any]:
            if self.line is None:
                self.line = _connect(path)
                devices = os.environ.get("CUDA_VISIBLE_DEVICES", "") if on_gpus else ""
                self.say("begin", values=self.config, start=self.begins_from, devices=devices)
            found = self.say("step")
            if "error" in found:
                raise RuntimeError(found["error"])
            return {metric: found["value"], "step": found["step"], "done": found["done"]}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            (Path(checkpoint_dir) / FILE).write_text(json.dumps(self.say("save")))

        def load_checkpoint(self, checkpoint: Any) -> None:
            self.begins_from = json.loads((Path(checkpoint) / FILE).read_text())

        def cleanup(self) -> None:
            if self.line is not None:
                self.say("stop")
                self.line.close()

        def say(self, do: str, **more: Any) -> dict[str, Any]:
            line = json.dumps({"do": do, "id": self.trial_id, **more}, default=lambda number: number.item())  # of numpy
            self.line.write(line.encode() + b"\n")
            self.line.flush()
            return json.loads(self.line.readline() or b'{"error": "the search has ended"}')

    return RayTrial


def ends_with(path: str) -> Any:
    """A stopper that ends Ray's loop when the path no longer exists. Ray writes the stopper to a file, so it holds
    nothing but the path."""
    tune = importlib.import_module("ray.tune")

    class Ended(tune.Stopper):
        """Asked by Ray in every turn of its loop."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return not os.path.exists(path)

    return Ended()


def _connect(path: str) -> Any:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.connect(path)
    return channel.makefile("rwb")
