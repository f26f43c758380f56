"""Find out whether the Python library of a tracker is installed, and in which version, without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from ...errors import Problem


def is_installed(module: str) -> bool:
    """Whether a module can be imported. A plain folder of that name in the current folder, such as the ``wandb`` that a
    tracker leaves behind, does not count."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # the package above it is missing
        return False
    return spec is not None and (spec.origin is not None or module.count(".") > 0)


def library_version(module: str) -> str | None:
    """Version of the package that provides a module; None if it is not installed."""
    if not is_installed(module):
        return None
    top = module.partition(".")[0]
    packages = importlib.metadata.packages_distributions().get(top, [])
    return ", ".join(sorted({importlib.metadata.version(name) for name in packages})) or "installed"


def missing_library(key: str, title: str, module: str, package: str) -> Problem | None:
    """The problem of a tracker whose library is not installed."""
    if is_installed(module):
        return None
    return Problem(
        "tracker", f"{title} needs the library {module}, which is not installed", f"pip install {package}", key
    )
