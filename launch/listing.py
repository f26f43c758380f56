"""Print tables of recipes, plans, model families and model presets, and the summary of a checked recipe."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .find_recipes import PACKAGE, first_comment, list_recipes

WIDTH = 80

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def show_recipes(recipe_dirs: Sequence[str]) -> None:
    """Print a table of recipes and their descriptions."""
    show_table(("recipe", "what it does"), [(name, first_comment(path)) for name, path in list_recipes(recipe_dirs)])


def show_models() -> None:
    """Print two tables: model families, and presets with their sizes."""
    from ..models.family import families

    print("Families that can be trained. The config.json of model.weights says which it is, as")
    print("model_type; weights of other types are refused. Without weights: model.family=NAME.")
    show_table(("family", "model", "paper"), [(spec.name, spec.title, spec.paper) for spec in families().values()])
    print("Presets: model=NAME builds a model of this size with new weights.")
    presets = []
    for path in sorted((PACKAGE / "configs" / "model").glob("*.yaml")):
        family = (yaml.safe_load(path.read_text()) or {}).get("family")
        presets.append((path.stem, family or "any", first_comment(path)))
    show_table(("preset", "family", "what it is"), sorted(presets, key=lambda preset: (preset[1], preset[0])))


def show_plans() -> None:
    """Print a table of the plans that a recipe can choose with ``plan=NAME``."""
    paths = sorted((PACKAGE / "configs" / "plan").glob("*.yaml"))
    show_table(("plan", "how the run is spread"), [(path.stem, first_comment(path)) for path in paths])


def describe_run(recipe: RecipeConfig, ranks: int) -> str:
    """A summary of what ``trireme train`` would do."""
    trainer, data = recipe.trainer, recipe.plan.degrees(ranks).data
    micro_batches = trainer.global_batch_size // (trainer.micro_batch_size * data)
    processes = f"{ranks} process{'es' if ranks > 1 else ''}"
    micro = f"{micro_batches} micro-batch{'es' if micro_batches > 1 else ''} of {trainer.micro_batch_size}"
    length = f"{trainer.max_steps} steps" if trainer.max_steps is not None else f"{trainer.epochs:g} epochs"
    from ..configs.schema import wanted_by
    from ..models.check_model import model_notes, weight_notes
    from ..trainer.data.check_data import unread_notes
    from ..trainer.ignored_options import ignored_options
    from ..trainer.run_folder import folder_notes, other_run, run_notes
    from ..trainer.tasks.task import head_of

    found = [
        *model_notes(recipe.model, recipe.plan.precision),
        *weight_notes(recipe.model, head_of(recipe.task)),
        *ignored_options(recipe),
        *folder_notes(Path(recipe.run.dir)),
        *run_notes(recipe),
        *unread_notes(recipe.data, wanted_by(recipe.task, recipe.data) or {}),
    ]
    if recipe.model.adapter and not recipe.model.weights and not recipe.model.adapter.path:
        found.append("model.adapter trains beside a base of random weights, which stay as they are: set model.weights")
    notes = "".join(f"\n  note   {note}" for note in found)
    head = "no problems in the recipe, but its folder is taken" if other_run(recipe) else "no problems found"
    weights = f"weights of {recipe.model.weights}" if recipe.model.weights else "random weights"
    kept = recipe.model.quantization
    weights += f" in {kept.method}" if kept and kept.method != "stored" else ", quantised" if kept else ""
    weights += ", adapters beside them" if recipe.model.adapter else ""
    return (
        f"{head}\n"
        f"  model  {_family(recipe)}, {weights}\n"
        f"  plan   {recipe.plan.name}, {processes}, {recipe.plan.precision}\n"
        f"  batch  {trainer.global_batch_size} samples = {micro} on {data} data rank{'s' if data > 1 else ''}\n"
        f"  length {length}\n"
        f"{_mixture(recipe)}"
        f"  folder {recipe.run.dir}{notes}"
    )


def _family(recipe: RecipeConfig) -> str:
    """The model family; before it the ``model_type``, if the recipe names one that has no family of its own."""
    kind = recipe.model.config.get("model_type")
    return f"{kind} (family {recipe.model.family})" if kind else str(recipe.model.family)


def _mixture(recipe: RecipeConfig) -> str:
    """A line on the shares of the sources, if there are several."""
    weights = {name: entry.weight for name, entry in (recipe.data.sources or {}).items()}
    shares = [f"{name} {100 * weight / sum(weights.values()):.3g} %" for name, weight in sorted(weights.items())]
    return f"  data   {', '.join(shares)}\n" if shares else ""


def show_verdicts(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table whose last cell is a sentence: it is printed below its row, once for rows that share it."""
    from shutil import get_terminal_size

    widths = [max(len(cell) for cell in column) + 2 for column in zip(header, *(row[:-1] for row in rows), strict=True)]
    width = get_terminal_size((WIDTH, 24)).columns
    lines = ["".join(cell.ljust(wide) for cell, wide in zip(header, widths, strict=True))]
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        lines.append("".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=False)))
        if after is None or after[-1] != row[-1]:
            lines += textwrap.wrap(row[-1], width, initial_indent="    ", subsequent_indent="    ")
    print("\n".join(line.rstrip() for line in lines), flush=True)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # whole lines for grep and files
    console.print(table)
