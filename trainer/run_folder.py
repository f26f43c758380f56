"""The folder of a run: made once, shared by all ranks, and never mixed between different recipes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import Problem, UserError
from .checkpoint.layout import RECIPE, checkpoints_at

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

TRAJECTORY = (
    "seed",
    "model",
    "task",
    "data",
    "collator",
    "optimizer",
    "scheduler",
    "ema",
    "trainer.global_batch_size",
    "trainer.max_grad_norm",
)
"""What the losses depend on: a run is only continued by itself when none of it has changed."""
SPEED_ONLY = ("data.num_workers", "data.num_proc", "data.cache_dir", "model.attention")
"""Parts of the above that the losses do not depend on."""


def open_run_folder(path: Path, fresh: bool) -> None:
    """Make the folder; with ``fresh``, an existing one is first moved aside (to ``NAME.1``, ``NAME.2`` ...).

    Raises:
        UserError: it cannot be made or written.
    """
    try:
        if fresh and path.exists():
            number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.{n}").exists())
            os.replace(path, path.with_name(f"{path.name}.{number}"))
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write_probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(unwritable(path, error)) from None


def write_recipe(recipe: RecipeConfig, folder: Path, others: Mapping[str, str] | None = None) -> None:
    """The resolved recipe, which runs again as it is: ``trireme train FOLDER/recipe.yaml``.

    Args:
        others: name -> text of files to write beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)
    for name, content in {RECIPE: text, **(others or {})}.items():
        partial = folder / f".{name}.partial"
        partial.write_text(content)
        os.replace(partial, folder / name)


def refuse_other_recipe(recipe: RecipeConfig, checkpoint: Path) -> None:
    """An automatic resume continues the same trajectory, or says what has changed.

    Raises:
        UserError: something the losses depend on differs from the recipe in ``checkpoint``.
    """
    changed = changed_keys(recipe, checkpoint, TRAJECTORY)
    if changed:
        shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
        raise UserError(
            Problem(
                "run.dir",
                f"holds a run of another recipe (changed: {shown})",
                f"choose another run.dir, start over with --fresh (the old folder is kept), or continue it with "
                f"--resume {checkpoint}",
                recipe.run.dir,
            )
        )


def weights_at(recipe: RecipeConfig, checkpoint: str | None, ema: bool) -> Path | None:
    """The checkpoint or run folder to evaluate; None means ``model.weights``. Nothing is read yet.

    Raises:
        UserError: there are no weights, or no averaged ones.
    """
    folder = Path(checkpoint or recipe.run.dir).expanduser()
    if checkpoint is not None or checkpoints_at(folder):
        return folder
    if recipe.model.weights is None:
        fix = "train the recipe first, name a checkpoint or run folder with --checkpoint, or set model.weights"
        raise UserError(Problem("run.dir", "holds no checkpoint, so there are no weights", fix, str(folder)))
    if ema:
        fix = "name a checkpoint of a run with ema=average, or leave --ema out"
        raise UserError(Problem("--ema", "model.weights holds one set of weights", fix, recipe.model.weights))
    return None


def changed_keys(recipe: RecipeConfig, checkpoint: Path, parts: Iterable[str]) -> list[str]:
    """Keys of the named parts that differ from the recipe in ``checkpoint``, without those that change speed only."""
    then, now = yaml.safe_load((checkpoint / RECIPE).read_text()), dataclasses.asdict(recipe)
    found = (key for name in parts for key in _differences(_at(then, name), _at(now, name), name))
    return [key for key in found if key not in SPEED_ONLY]


def unwritable(path: Path, error: OSError) -> Problem:
    """What to say when the run folder cannot be written."""
    return Problem(
        "run.dir",
        f"cannot be written: {error.strerror or error}",
        "choose a folder you may write to, for example run.dir=runs/mine, or free space on its disk",
        str(path),
    )


def _at(values: Any, path: str) -> Any:
    for part in path.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _differences(then: Any, now: Any, path: str) -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        return [
            key
            for name in sorted({*then, *now})
            for key in _differences(then.get(name), now.get(name), f"{path}.{name}")
        ]
    return [] if then == now else [path]
