"""Find recipes by name or path, list them and their folders, and list the options of configuration groups."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ..configs.values import nearest
from ..errors import Problem, UserError
from ..models.weight_sets import beside_base

PACKAGE = Path(__file__).resolve().parent.parent
SUFFIXES = (".yaml", ".yml")
RUN_RECIPE = "recipe.yaml"
"""The recipe in a run folder; the folder stands for it."""


def recipe_folders(recipe_dirs: Sequence[str] = ()) -> list[Path]:
    """Folders that are searched for recipes: ``recipe_dirs``, ``./recipes``, and the package's own."""
    own = [Path(os.path.expanduser(folder)) for folder in recipe_dirs]
    missing = [folder for folder in own if not os.path.isdir(folder)]
    if missing:
        raise UserError(
            *(
                Problem("--recipe-dir", "is not a folder", "name a folder with recipes", str(folder))
                for folder in missing
            )
        )
    local = Path("recipes")
    packaged = PACKAGE / "recipes"
    here = [local] if local.is_dir() and local.resolve() != packaged.resolve() else []
    return [*own, *here, packaged]


def list_recipes(recipe_dirs: Sequence[str] = ()) -> Iterator[tuple[str, Path]]:
    """All recipes as (name, file), sorted by name; if two have the same name, the one in the first folder counts."""
    found: dict[str, Path] = {}
    for folder in recipe_folders(recipe_dirs):
        for path in sorted(file for suffix in SUFFIXES for file in folder.rglob(f"*{suffix}") if file.is_file()):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not name.startswith("configs/"):  # groups of a user's recipe folder
                found.setdefault(name, path)
    yield from sorted(found.items())


def find_recipe(recipe: str, recipe_dirs: Sequence[str] = ()) -> Path:
    """The file of a recipe given by name or path; a run folder stands for the recipe in it.

    Raises:
        UserError: there is no such recipe; the message suggests the nearest name.
    """
    folders = recipe_folders(recipe_dirs)
    if not isinstance(recipe, (str, Path)) or not str(recipe).strip():
        fix = "name a recipe (see: trireme recipes) or a .yaml file"
        raise UserError(Problem("RECIPE", "is not the name of a recipe", fix, recipe))
    recipe = str(recipe)
    if recipe.lower().endswith(SUFFIXES):
        path = Path(os.path.expanduser(recipe))
        if os.path.isfile(path) or os.path.isdir(path):  # reading refuses a folder with such a name
            return path
        if os.path.exists(path):  # it could only be read once, or without end
            raise UserError(Problem("RECIPE", "is a pipe or a device, not a file", "write it to a file first", recipe))
        raise UserError(Problem("RECIPE", "no such file", _near_file(path) or "see: trireme recipes", recipe))
    for folder in folders:
        for suffix in SUFFIXES:
            if os.path.isfile(path := folder / f"{recipe}{suffix}"):
                return path
    if (run := Path(recipe).expanduser() / RUN_RECIPE).is_file():
        return run
    if problem := _other_path(Path(os.path.expanduser(recipe)), recipe):
        raise UserError(problem)
    names = [name for name, _ in list_recipes(recipe_dirs)]
    by_last = {name.rpartition("/")[2]: name for name in names}
    near = nearest(recipe, names) or by_last.get(nearest(recipe.rpartition("/")[2], by_last) or "")
    if not near and (problem := _other_folder(Path(os.path.expanduser(recipe)), recipe)):
        raise UserError(problem)
    raise UserError(
        Problem("RECIPE", "no recipe of this name", f"did you mean {near}?" if near else "see: trireme recipes", recipe)
    )


def _near_file(path: Path) -> str:
    """A fix for a path that does not exist: suggest a file in the same folder with a similar name."""
    if not os.path.isdir(path.parent):
        return ""
    files = [file.name for suffix in SUFFIXES for file in path.parent.glob(f"*{suffix}") if file.is_file()]
    near = nearest(path.name, files)
    return f"did you mean {path.parent / near}?" if near else ""


def _other_path(path: Path, recipe: str) -> Problem | None:
    """The problem of a path that exists but lacks the suffix of recipes."""
    if os.path.isfile(path):
        beside = path.parent / RUN_RECIPE
        fix = f"give a recipe, such as {beside}" if beside.is_file() else "give a recipe; its name ends in .yaml"
        return Problem("RECIPE", "is a file whose name does not end in .yaml", fix, recipe)
    here = next((f"{path}{suffix}" for suffix in SUFFIXES if os.path.isfile(f"{path}{suffix}")), None)
    if here:
        return Problem("RECIPE", "no recipe of this name", f"for the file write {here}", recipe)
    inside = sorted(file for suffix in SUFFIXES for file in path.glob(f"*{suffix}")) if os.path.isdir(path) else []
    if inside:
        return Problem("RECIPE", "is a folder, not a recipe", f"name a file in it, such as {inside[0]}", recipe)
    return None


def _other_folder(path: Path, recipe: str) -> Problem | None:
    """The problem of a folder without recipes, which may lie in the folder of a run."""
    if not os.path.isdir(path):
        return None
    if os.path.isfile(path / "adapter_config.json"):
        fix = f"name a recipe of data, and the adapter in it: RECIPE {beside_base(path)}"
        return Problem("RECIPE", "is a folder of an adapter, not a recipe", fix, recipe)
    run = next((folder for folder in path.absolute().parents if os.path.isfile(folder / RUN_RECIPE)), None)
    if run:
        shown = os.path.relpath(run) if not path.is_absolute() else run
        return Problem("RECIPE", "is a folder inside of a run, not a recipe", f"name the run: {shown}", recipe)
    return Problem("RECIPE", "is a folder that holds no recipe", "name a .yaml file; see: trireme recipes", recipe)


def misnamed_option(group: str, name: str, folders: Sequence[Path]) -> Path | None:
    """A file of a group that would be the option ``name`` if its name ended in .yaml."""
    return next((file for folder in folders if os.path.isfile(file := folder / group / f"{name}.yml")), None)


def config_folders(recipe: Path, recipe_dirs: Sequence[str] = ()) -> list[Path]:
    """Folders that hold configuration groups for a recipe, in search order."""
    own = [Path(os.path.expanduser(folder)) / "configs" for folder in recipe_dirs]
    return [recipe.parent, *(folder for folder in own if folder.is_dir()), PACKAGE / "configs"]


def group_options(group: str, folders: Sequence[Path]) -> list[str]:
    """Names that can be chosen in a group; empty if there is no such group."""
    if not group or "." in group:
        return []
    options = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(options)


def may_name_components(group: str, folders: Sequence[Path]) -> bool:
    """Whether a choice in a group may bring or take a ``_target_``: a file of it names one, reads other files, or
    writes outside its own part."""
    files = (file for folder in folders for file in (folder / group).glob("*.yaml") if file.is_file())
    try:
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    except OSError:  # reported when the file is composed
        return True
    return any(re.search(r"_target_|defaults:|@package", text) for text in texts)


def first_comment(path: Path) -> str:
    """The first comment line of a file, which describes a recipe or plan."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("#") and not line.startswith("# @package"):
                return line.lstrip("# ").strip()
            if line.strip() and not line.startswith("#"):
                break
    return ""


@cache
def groups_of_base() -> frozenset[str]:
    """Groups of which configs/base.yaml makes a choice, null included."""
    import yaml

    defaults = yaml.safe_load((PACKAGE / "configs" / "base.yaml").read_text(encoding="utf-8"))["defaults"]
    return frozenset(group for entry in defaults if isinstance(entry, dict) for group in entry)
