"""The package root, which offers the public names: ``trireme.train``, ``search`` and ``report``, and error classes.

trireme trains models of transformers from one YAML recipe, with the same losses under every parallelism plan.
This file imports nothing heavy, so that ``trireme --help`` is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import Problem, UserError
from .version import __version__

if TYPE_CHECKING:
    from .launch.notebook import train
    from .launch.report_view import report
    from .launch.search.notebook_search import search

__all__ = ["Problem", "UserError", "__version__", "report", "search", "train"]


def __getattr__(name: str) -> Any:
    """Import ``trireme.train`` and others when they are first used."""
    if name == "train":
        from .launch.notebook import train

        return train
    if name == "report":
        from .launch.report_view import report

        return report
    if name == "search":
        from .launch.search.notebook_search import search

        return search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
