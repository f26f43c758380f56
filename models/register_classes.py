"""Register trireme's own model classes with transformers, for architectures that transformers lacks.

This must happen before transformers reads a config.json of such a model. Importing the classes takes as long as
importing transformers, so each is imported only when it is needed.
"""

from __future__ import annotations

import importlib

from .family import ModelFamily, families


def register_classes(family: ModelFamily | None = None) -> None:
    """Register the classes of one family, or of all, with transformers' Auto classes."""
    for one in families().values() if family is None else (family,):
        if one.classes:
            importlib.import_module(one.classes)
