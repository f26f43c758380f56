"""Import the object that a recipe names by a dotted path, such as a model class or a user's own data source.

The module may be installed, or lie beside the recipe or in the current folder.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_own_folders: list[str] = []
"""Folders of the user's own code: the recipe's folder and the current one."""


def import_from(*folders: Path) -> None:
    """Add ``folders`` to those that are searched for modules that are not installed."""
    _own_folders[:] = dict.fromkeys([*map(str, folders), *_own_folders])


def _import_module(name: str) -> Any:
    """Import a module that is installed, or lies in one of the user's own folders.

    These folders come last on the path, and stay there only if the module was found in them: a folder ``wandb`` that a
    tracker left beside a recipe must not be taken for the package.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        added = [folder for folder in _own_folders if folder not in sys.path]
        if not added or not error.name or not f"{name}.".startswith(f"{error.name}."):
            raise
    sys.path += added
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            sys.path[:] = [folder for folder in sys.path if folder not in added]
        raise


def locate(target: str) -> Any:
    """Import the object at the dotted path ``target``: a class, a function or a family description.

    Raises:
        ImportError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = target.rpartition(".")
    if not module_name:
        raise ImportError(f"{target!r} is not a dotted path such as package.module.Name")
    module = _import_module(module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ImportError(f"module {module_name!r} has no attribute {attribute!r}") from None
