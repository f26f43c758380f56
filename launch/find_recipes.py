"""Where recipes and configuration groups lie, and how a recipe is found by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..configs.values import nearest
from ..errors import Problem, UserError

PACKAGE = Path(__file__).resolve().parent.parent
SUFFIXES = (".yaml", ".yml")


def recipe_folders(recipe_dirs: Sequence[str] = ()) -> list[Path]:
    """Folders that are searched for recipes: the user's own, ``./recipes``, those that come with the package."""
    own = [Path(folder).expanduser() for folder in recipe_dirs]
    missing = [folder for folder in own if not folder.is_dir()]
    if missing:
        raise UserError(*(Problem("--recipe-dir", "is not a folder", "", str(folder)) for folder in missing))
    local = Path("recipes")
    packaged = PACKAGE / "recipes"
    here = [local] if local.is_dir() and local.resolve() != packaged.resolve() else []
    return [*own, *here, packaged]


def list_recipes(recipe_dirs: Sequence[str] = ()) -> Iterator[tuple[str, Path]]:
    """All recipes as (name, file), sorted by name; of two with one name the first folder's counts."""
    found: dict[str, Path] = {}
    for folder in recipe_folders(recipe_dirs):
        for path in sorted(folder.rglob("*.yaml")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not name.startswith("configs/"):  # groups of a user's recipe folder
                found.setdefault(name, path)
    yield from sorted(found.items())


def find_recipe(recipe: str, recipe_dirs: Sequence[str] = ()) -> Path:
    """The file of a recipe given by name or path.

    Raises:
        UserError: there is none; the nearest name is told.
    """
    folders = recipe_folders(recipe_dirs)
    if recipe.endswith(SUFFIXES):
        path = Path(recipe).expanduser()
        if path.is_file():
            return path
        raise UserError(Problem("RECIPE", "no such file", "see: trireme recipes", recipe))
    for folder in folders:
        if (path := folder / f"{recipe}.yaml").is_file():
            return path
    names = [name for name, _ in list_recipes(recipe_dirs)]
    by_last = {name.rpartition("/")[2]: name for name in names}
    near = nearest(recipe, names) or by_last.get(nearest(recipe.rpartition("/")[2], by_last) or "")
    raise UserError(
        Problem("RECIPE", "no recipe of this name", f"did you mean {near}?" if near else "see: trireme recipes", recipe)
    )


def config_folders(recipe: Path, recipe_dirs: Sequence[str] = ()) -> list[Path]:
    """Folders that hold configuration groups for a recipe, in the order of their search."""
    own = [Path(folder).expanduser() / "configs" for folder in recipe_dirs]
    return [recipe.parent, *(folder for folder in own if folder.is_dir()), PACKAGE / "configs"]


def group_options(group: str, folders: Sequence[Path]) -> list[str]:
    """Names that can be chosen in a group; empty when there is no such group."""
    if not group or "." in group:
        return []
    options = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
    return sorted(options)


def first_comment(path: Path) -> str:
    """The first comment line of a file: what a recipe does."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("#") and not line.startswith("# @package"):
                return line.lstrip("# ").strip()
            if line.strip() and not line.startswith("#"):
                break
    return ""
