"""List the trackers by the names that recipes use: ``tracker=[wandb,tensorboard]``."""

from __future__ import annotations

import importlib

from .tracker import Tracker
from .tracker_library import is_installed

CLASSES = {
    "tensorboard": "TensorBoard",
    "wandb": "Wandb",
    "mlflow": "Mlflow",
    "comet": "Comet",
    "neptune": "Neptune",
    "clearml": "ClearML",
    "codecarbon": "CodeCarbon",
    "dvclive": "DvcLive",
    "flyte": "Flyte",
    "dagshub": "DagsHub",
    "azureml": "AzureML",
    "trackio": "Trackio",
    "swanlab": "SwanLab",
    "aim": "Aim",
}
"""Module of this folder, which is also the name in recipes -> class in it."""


def tracker_class(key: str) -> type[Tracker]:
    """The class of a tracker; its library is not imported."""
    return getattr(importlib.import_module(f".{key}", __package__), CLASSES[key])


def installed_trackers() -> list[type[Tracker]]:
    """Trackers whose library is installed."""
    return [cls for cls in map(tracker_class, CLASSES) if is_installed(cls.LIBRARY)]
