"""Keep the old import path of the TensorBoard callback working, for recipes of earlier runs.

TensorBoard is now one of the trackers: see ``trackers/tensorboard.py``.
"""

from ..trackers.tensorboard import TensorBoard

__all__ = ["TensorBoard"]
