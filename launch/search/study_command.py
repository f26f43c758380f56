"""The command that started a study, saved in the study's folder, so that the folder alone is enough to continue it.

``trireme search FOLDER`` means the same recipe and overrides again. New overrides on the command line replace saved
ones of the same key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...configs.values import nearest
from ...errors import Problem, UserError
from ...trainer.run_report.study import COMMAND as FILE
from ..find_recipes import find_recipe
from ..overrides import key_of

OWN_KEYS = ("run.dir", "run.group", "run.trial")
"""Keys that a search sets for each trial."""


@dataclass(frozen=True)
class StudyCommand:
    """Arguments of a search."""

    recipe: str
    overrides: list[str]
    recipe_dirs: list[str]
    nproc: int | None

    @property
    def of_trials(self) -> list[str]:
        """Overrides of every trial: those of the command, without keys that a search sets itself."""
        return [
            text for text in self.overrides if key_of(text).split(".")[0] != "search" and key_of(text) not in OWN_KEYS
        ]

    def overrides_of(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of a trial with these values, without its folder."""
        from ..notebook import as_overrides

        return [*self.of_trials, *as_overrides(values)]

    def write(self, folder: Path) -> None:
        """Keep the command; the recipe by its full path, since the folder may be used from elsewhere."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def recalled(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], nproc: int | None) -> StudyCommand:
    """The command as given. For the folder of a study it is the command that began the study, changed by what is given.

    Raises:
        UserError: there is neither a recipe nor a study of this name.
    """
    file = Path(recipe).expanduser() / FILE
    if not file.is_file():
        _refuse_neither(recipe, recipe_dirs)
        return StudyCommand(recipe, list(overrides), [str(folder) for folder in recipe_dirs], nproc)
    before = _read(file)
    given = set(map(key_of, overrides)) | {"run.dir"}
    kept = [text for text in before.overrides if key_of(text) not in given]
    return StudyCommand(
        before.recipe,
        [*kept, f"run.dir={file.parent}", *overrides],
        [*before.recipe_dirs, *map(str, recipe_dirs)],
        before.nproc if nproc is None else nproc,
    )


def _read(file: Path) -> StudyCommand:
    """The command that a study has saved.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        found = StudyCommand(**json.loads(file.read_text(encoding="utf-8")))
        lists = found.overrides, found.recipe_dirs
        if isinstance(found.recipe, str) and all(isinstance(each, list) for each in lists):
            return found
        why = "it holds no command"
    except (OSError, ValueError, RecursionError, TypeError) as error:  # ValueError: it is no JSON, or no text
        why = error.strerror or str(error) if isinstance(error, OSError) else "it holds no command"
    fix = f"give the command of the study again, with run.dir={file.parent}"
    raise UserError(Problem(str(file), f"is damaged: {why}", fix))


def _refuse_neither(recipe: str, recipe_dirs: Sequence[str]) -> None:
    """Refuse a name that is neither a recipe nor a study."""
    try:
        find_recipe(recipe, recipe_dirs)
    except UserError as error:
        folder = Path(recipe).expanduser()
        if folder.suffix in (".yaml", ".yml") or not (folder.is_dir() or "/" in recipe):
            raise
        beside = [each.name for each in folder.parent.glob("*") if (each / FILE).is_file()]
        near = nearest(folder.name, beside)
        fix = f"did you mean {Path(recipe).parent / near}?" if near else _fix_of(error)
        why = "there is neither a recipe nor a folder of this name"
        if folder.is_dir():
            why = f"is a folder, but not that of a study ({FILE} is not in it), nor that of a run"
        raise UserError(Problem("RECIPE", why, fix, recipe)) from None


def _fix_of(error: UserError) -> str:
    fixes = [problem.fix for problem in error.problems if isinstance(problem, Problem)]
    usual = "name a recipe (see: trireme recipes) or the folder of a study"
    return fixes[0] if fixes and fixes[0].startswith("did") else usual
