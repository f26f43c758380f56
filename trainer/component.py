"""Components: parts of a recipe that name a Python class or function by ``_target_``.

Callbacks, data sources, tasks, collators and optimizers are components, so a user's own class takes part by its
import path and needs no registration. The rest of the node holds its keyword arguments, which are checked against
the signature before a run starts (``configs/validate.py``).
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

Component = dict[str, Any]
"""``{"_target_": "package.module.Name", **keyword arguments}``; arguments may be components themselves."""


_own_folders: list[str] = []
"""Folders of the user's own components: the recipe's folder and the current one."""


def import_from(*folders: Path) -> None:
    """Also search ``folders`` for components that are not installed."""
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
    """Import the class or function at the dotted path ``target``.

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


def instantiate(component: Component, *args: Any, **extra: Any) -> Any:
    """Call the target with the recipe's arguments, and with ``args`` and ``extra`` from the engine.

    Unlike ``hydra.utils.instantiate`` it never copies or converts ``args`` (live parameters pass through here).
    """
    kwargs = {key: _nested(value) for key, value in component.items() if key != "_target_"}
    return locate(component["_target_"])(*args, **kwargs, **extra)


def _nested(value: Any) -> Any:
    if isinstance(value, dict):
        return instantiate(value) if "_target_" in value else {key: _nested(item) for key, item in value.items()}
    return [_nested(item) for item in value] if isinstance(value, list) else value
