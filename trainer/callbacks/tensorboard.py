"""The old import path of TensorBoard, for recipes of older runs; it is a tracker now (``trackers/tensorboard.py``)."""

from ..trackers.tensorboard import TensorBoard

__all__ = ["TensorBoard"]
