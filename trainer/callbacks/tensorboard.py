"""The place of TensorBoard in recipes of older runs; it is a tracker now (``trainer/trackers/tensorboard.py``)."""

from ..trackers.tensorboard import TensorBoard

__all__ = ["TensorBoard"]
