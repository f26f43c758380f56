"""The dataclass of a search that has passed its checks: recipe, search space, objective, and the study's folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .objective import Objective, name_of
from .space import Space
from .study_command import StudyCommand

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig
    from .search_config import SearchConfig


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
        """Values that must not change during a study, even if the search is started again."""
        space: Any = self.space.as_json() if isinstance(self.space, Space) else {"function": name_of(self.space)}
        function = self.objective.function
        named = {"function": name_of(function)} if function else {}
        return {"space": space, "objectives": {**self.objective.modes, **named}}

    @property
    def sample(self) -> dict[str, Any]:
        """The values that every trial's process gets."""
        return {**asdict(self.command), "overrides": self.command.of_trials}
