"""Find files that a recipe includes twice through its lists of defaults, and recipes that include each other in a
cycle.

Hydra refuses both, but its message names only the first choice that is made twice, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from .recipe_file import mapping_node

GLOBAL = "@_global_"


def repeated_recipes(recipe: Path, folders: Sequence[Path]) -> list[Problem]:
    """Problems of files that are reached twice from a recipe's list of defaults.

    Args:
        folders: folders in which files are looked up, in search order.
    """
    ways: dict[Path, list[Path]] = {}
    problems: dict[Path, Problem] = {}

    def walk(file: Path, way: list[Path]) -> None:
        if file in way:
            circle = " -> ".join(each.name for each in [*way[way.index(file) :], file])
            fix = f"take {file.stem} out of the defaults of {way[-1].name}"
            problems[file] = Problem("defaults", f"make recipes build on each other without end: {circle}", fix)
            return
        if file in ways and file not in problems:
            problems[file] = _twice(file, ways[file], way)
        if file in ways:
            return
        ways[file] = way
        for each in _built_on(file, folders):
            walk(each, [*way, file])

    walk(recipe.resolve(), [])
    return list(problems.values())


def _twice(file: Path, first: list[Path], second: list[Path]) -> Problem:
    """The problem of a file that is reached in two ways, each a list of files that begins with the recipe."""
    shorter, longer = sorted((first, second), key=len)
    through = " and ".join(each.name for each in (shorter[-1], longer[-1]))
    why = f"include {file.name} twice, in {through}"
    if len(shorter) == len(longer):
        fix = f"keep only values in {longer[-1].name}, or build it on {shorter[-1].name}"
    else:
        fix = f"leave {file.stem} out of the defaults of {shorter[-1].name}"
    return Problem("defaults", why, fix)


def _built_on(file: Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Files that the list of defaults of ``file`` merges at the top, not into a part."""
    try:
        lists = [value for key, value in mapping_node(file).value if key.value == "defaults"]
    except UserError:  # Hydra reports it
        return
    for entry in (item for each in lists if each.id == "sequence" for item in each.value):
        name = _name(entry)
        beside = [file.parent] if not name.startswith("/") else []
        found = (each / f"{name.strip('/')}.yaml" for each in (*beside, *folders))
        if name and name != "_self_" and (path := next((each for each in found if each.is_file()), None)):
            yield path.resolve()


def _name(entry: Any) -> str:
    """The file that an entry of defaults merges at the top; empty for a choice of a group."""
    if entry.id == "scalar":
        return str(entry.value).partition("@")[0]
    if entry.id == "mapping" and entry.value and entry.value[0][1].id == "scalar":
        group, option = (str(each.value) for each in entry.value[0])
        if GLOBAL in group + option:
            return f"{group.partition('@')[0]}/{option.partition('@')[0]}"
    return ""
