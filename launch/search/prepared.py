"""A search that has passed its checks: recipe, space, objective, and the folder of its study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..overrides import key_of
from .objective import Objective
from .space import Space
from .study_command import StudyCommand

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig
    from .search_config import SearchConfig

OWN_KEYS = ("run.dir", "run.group", "run.trial")
"""Keys that a search sets for each trial."""


@dataclass
class Prepared:
    """A search that has passed all checks."""

    recipe: RecipeConfig
    """The recipe without a trial's values."""
    command: StudyCommand
    raw: dict[str, Any]
    """The recipe as plain data."""
    ranks: int
    folder: Path
    name: str
    space: Space | Callable[[Any], dict[str, Any]]
    objective: Objective

    @property
    def search(self) -> SearchConfig:
        assert self.recipe.search is not None
        return self.recipe.search

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same while a study goes on."""
        space: Any = self.space.as_json() if isinstance(self.space, Space) else {"function": _name_of(self.space)}
        function = self.objective.function
        named = {"function": _name_of(function)} if function else {}
        return {"space": space, "objectives": {**self.objective.modes, **named}}

    @property
    def overrides(self) -> list[str]:
        """Overrides of every trial: those of the command, without what a search decides itself."""
        return [
            text
            for text in self.command.overrides
            if key_of(text).split(".")[0] != "search" and key_of(text) not in OWN_KEYS
        ]

    @property
    def sample(self) -> dict[str, Any]:
        """What every trial's process is told."""
        return {**asdict(self.command), "overrides": self.overrides}

    def overrides_of(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of a trial with these values, without its folder."""
        from ..notebook import as_overrides

        return [*self.overrides, *as_overrides(values)]


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"
