"""Check that optuna, which every search needs, is installed."""

from __future__ import annotations

import importlib.util

from ...errors import Problem, UserError


def refuse_without_optuna() -> None:
    """Refuse a search without optuna.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            Problem("search", "needs optuna, which is not installed", "pip install 'trireme-train[optuna]'")
        )
