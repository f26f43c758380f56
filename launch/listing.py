"""What there is: recipes, plans, model families and presets; and what a checked recipe would do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from .find_recipes import PACKAGE, first_comment, list_recipes

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def show_recipes(recipe_dirs: Sequence[str]) -> None:
    """A table of recipe names and what they do."""
    show_table(("recipe", "what it does"), [(name, first_comment(path)) for name, path in list_recipes(recipe_dirs)])


def show_models() -> None:
    """Two tables: families, and the presets that a recipe chooses with ``model=NAME``."""
    from ..models.family import families

    show_table(("family", "model", "paper"), [(spec.name, spec.title, spec.paper) for spec in families().values()])
    presets = []
    for path in sorted((PACKAGE / "configs" / "model").glob("*.yaml")):
        family = (yaml.safe_load(path.read_text()) or {}).get("family")
        presets.append((path.stem, family or "any", first_comment(path)))
    show_table(("preset", "family", "what it is"), sorted(presets, key=lambda preset: (preset[1], preset[0])))


def show_plans() -> None:
    """A table of the plans that a recipe chooses with ``plan=NAME``."""
    paths = sorted((PACKAGE / "configs" / "plan").glob("*.yaml"))
    show_table(("plan", "how the run is spread"), [(path.stem, first_comment(path)) for path in paths])


def describe_run(recipe: RecipeConfig, ranks: int) -> str:
    """One paragraph on what ``trireme train`` would do."""
    trainer, data = recipe.trainer, recipe.plan.degrees(ranks).data
    micro_batches = trainer.global_batch_size // (trainer.micro_batch_size * data)
    processes = f"{ranks} process{'es' if ranks > 1 else ''}"
    micro = f"{micro_batches} micro-batch{'es' if micro_batches > 1 else ''} of {trainer.micro_batch_size}"
    length = f"{trainer.max_steps} steps" if trainer.max_steps is not None else f"{trainer.epochs:g} epochs"
    from ..models.check_model import model_notes, weight_notes
    from ..trainer.ignored_options import ignored_options

    found = [*model_notes(recipe.model, recipe.plan.precision), *weight_notes(recipe.model), *ignored_options(recipe)]
    notes = "".join(f"\n  note   {note}" for note in found)
    weights = f"weights of {recipe.model.weights}" if recipe.model.weights else "random weights"
    return (
        f"no problems found\n"
        f"  model  {recipe.model.family}, {weights}\n"
        f"  plan   {recipe.plan.name}, {processes}, {recipe.plan.precision}\n"
        f"  batch  {trainer.global_batch_size} samples = {micro} on {data} data rank{'s' if data > 1 else ''}\n"
        f"  length {length}\n"
        f"  folder {recipe.run.dir}{notes}"
    )


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
