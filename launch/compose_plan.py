"""Compose the configurations of all plans (kinds of parallelism) without a recipe, for the planner to compare.

Each plan gets the same values as by ``plan=NAME`` in a recipe. All plans are composed at once, since composing a recipe
thirty times takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from .find_recipes import PACKAGE, group_options

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_plan(name: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A plan as plain data: defaults of the schema, its file, then ``options``.

    Args:
        options: by dotted key (``{"fsdp.offload": True}``). Unknown ones are kept, since the reader of the recipe
            refuses them.
    """
    from omegaconf import OmegaConf

    plan = _with_defaults(name).copy()
    for key, value in (options or {}).items():
        OmegaConf.update(plan, key, value, merge=False, force_add=True)
    data: Any = OmegaConf.to_container(plan)
    return data


def options_of_file(name: str) -> dict[str, Any]:
    """Options of a plan's file by dotted key, without the schema's defaults."""
    from omegaconf import OmegaConf

    data: Any = OmegaConf.to_container(_files()[name])
    return dotted(data)


def dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of options as one level: ``{"fsdp": {"offload": True}}`` becomes ``{"fsdp.offload": True}``."""
    options: dict[str, Any] = {}
    for key, value in tree.items():
        options |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return options


@cache
def _with_defaults(name: str) -> DictConfig:
    from omegaconf import OmegaConf

    from ..configs.validate import schema_defaults
    from ..parallel.plan import Plan

    plan: Any = OmegaConf.merge(schema_defaults(Plan), _files()[name])
    return plan


@cache
def _files() -> dict[str, DictConfig]:
    """Every plan of the package, by name."""
    from hydra import compose, initialize_config_dir

    folder = (PACKAGE / "configs").resolve()
    names = group_options("plan", [folder])
    with initialize_config_dir(str(folder), version_base="1.3"):
        # Keys of Hydra begin with a letter, but the name 3d does not; hence the prefix.
        composed = compose(overrides=[f"+plan@plan_{name}={name}" for name in names])
    return {name: composed[f"plan_{name}"] for name in names}
