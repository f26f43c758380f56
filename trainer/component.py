"""Components: parts of a recipe that name a Python class or function by ``_target_``.

Callbacks, data sources, tasks, collators and optimizers are components, so a user's own class takes part by its
dotted path (``models/locate.py``) and needs no registration. The rest of the node holds its keyword arguments, which
are checked against the signature before a run starts (``configs/validate.py``).
"""

from __future__ import annotations

from typing import Any

from ..models.locate import locate

Component = dict[str, Any]
"""``{"_target_": "package.module.Name", **keyword arguments}``; arguments may be components themselves."""


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
