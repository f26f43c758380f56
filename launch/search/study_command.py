"""The command that began a study, kept in its folder, so that the folder alone is enough to go on with it.

``trireme search FOLDER`` means the same recipe and overrides again; overrides that are given beside it replace those of
the same key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..overrides import key_of

FILE = "search.json"


@dataclass(frozen=True)
class StudyCommand:
    """Arguments of a search."""

    recipe: str
    overrides: list[str]
    recipe_dirs: list[str]
    nproc: int | None

    def write(self, folder: Path) -> None:
        """Keep the command; the recipe by its full path, since the folder may be used from elsewhere."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def recalled(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], nproc: int | None) -> StudyCommand:
    """The command as given, or for the folder of a study that which began it, with what was given beside it."""
    file = Path(recipe).expanduser() / FILE
    if not file.is_file():
        return StudyCommand(recipe, list(overrides), [str(folder) for folder in recipe_dirs], nproc)
    before = StudyCommand(**json.loads(file.read_text(encoding="utf-8")))
    given = set(map(key_of, overrides)) | {"run.dir"}
    kept = [text for text in before.overrides if key_of(text) not in given]
    return StudyCommand(
        before.recipe,
        [*kept, f"run.dir={file.parent}", *overrides],
        [*before.recipe_dirs, *map(str, recipe_dirs)],
        before.nproc if nproc is None else nproc,
    )
