"""Create a run's folder with its recipe, compare a recipe with those that runs have saved, and refuse to resume a run
with a recipe that would change its losses.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import Problem, UserError
from ..models.weight_sets import beside_base
from .checkpoint.layout import MANIFEST, RECIPE, checkpoints_at, complete_checkpoints
from .checkpoint.retention import best_checkpoint
from .component import locate
from .same_places import same_place, unlike

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

NOT_COMPARED = (
    "run",
    "plan",
    "launch",
    "callbacks",
    "checkpoint",
    "generation",
    "search",
    "model.attention",
    "model.loss",
    "data.eval_sets",
    "data.test_source",
    "data.num_workers",
    "data.num_proc",
    "data.cache_dir",
    *(
        f"trainer.{name}"
        for name in (
            "max_steps",
            "epochs",
            "stop_at",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "eval_delay",
            "eval_on_start",
            "eval_at_end",
            "eval_samples",
            "eval_micro_batch_size",
            "eval_precision",
            "eval_weights",
            "max_time",
            "timeout_minutes",
            "join_minutes",
        )
    ),
)
"""Keys that may change on a resume: where, how fast and how long a run trains, and its reports. All other keys decide
the losses, also keys that later versions add; so a key that does not must be listed here."""


OF_A_RUN = (RECIPE, "log.txt", "logs", "metrics.jsonl", "checkpoints", "slurm.json")
"""Files and folders of which a run leaves at least one, however early it ends."""


def folder_notes(path: Path) -> list[str]:
    """Warnings about a folder that a run can use, but hardly should: it lies in another run's, or holds other files."""
    whole = path.absolute()
    outer = next((each for each in whole.parents if (each / RECIPE).is_file() and (each / "log.txt").is_file()), None)
    if outer:
        return [
            f"run.dir={path} lies in the folder of another run ({outer}); a --fresh of that run would move this one too"
        ]
    if others := _foreign(path):
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        return [f"run.dir={path} holds files that belong to no run ({shown}): they stay in the folder"]
    return []


def run_notes(recipe: RecipeConfig) -> list[str]:
    """A note for ``trireme check`` if the recipe's folder holds checkpoints of a run; empty if it holds none."""
    newest = _newest_checkpoint(recipe)
    if newest is None:
        return []
    if not (changed := other_run(recipe)):
        return [f"run.dir={recipe.run.dir} holds this run, which continues after {newest.name}"]
    why = f"run.dir={recipe.run.dir} holds a run of another recipe (changed: {shown(changed)})"
    return [f"{why}: trireme train needs --fresh, --resume or another run.dir"]


def other_run(recipe: RecipeConfig) -> list[str]:
    """Keys in which the recipe differs from that of the run whose checkpoints lie in its folder; empty without one."""
    newest = _newest_checkpoint(recipe)
    return changed_keys(recipe, newest, resumes=True) if newest else []


def _newest_checkpoint(recipe: RecipeConfig) -> Path | None:
    own = complete_checkpoints(Path(recipe.run.dir) / "checkpoints")
    return next((each for each in own if (each / RECIPE).is_file()), None)


def shown(keys: list[str]) -> str:
    """The first of some keys, and how many more there are."""
    return ", ".join(keys[:6]) + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def _foreign(path: Path) -> list[str]:
    """Names in a folder that holds no trace of a run; empty for run folders, empty and absent ones."""
    try:
        names = sorted(os.listdir(path))
    except OSError:  # reported when the folder is opened
        return []
    return [] if set(names) & set(OF_A_RUN) else [name for name in names if not name.startswith(".")]


def open_run_folder(path: Path, fresh: bool, resume: str = "auto") -> None:
    """Create the folder; with ``fresh``, an existing one is first moved aside (to ``NAME.1``, ``NAME.2`` ...).

    Args:
        resume: ``auto``, ``never``, or the checkpoint or run folder that the run begins from.

    Raises:
        UserError: the folder cannot be created or written, or ``fresh`` would move a folder that holds no run, or the
            checkpoint that the run begins from.
    """
    if fresh and resume not in ("auto", "never"):
        named = Path(os.path.expanduser(resume)).resolve()
        if path.resolve() in (named, *named.parents):
            why = f"lies in the run folder ({path}), which --fresh moves aside"
            fix = "leave --fresh out (later checkpoints are kept), or choose another run.dir"
            raise UserError(Problem("--resume", why, fix, resume))
    if fresh and _foreign(path):
        why = "holds no run, and --fresh would move the whole folder aside"
        raise UserError(Problem("run.dir", why, "leave --fresh out, or choose another run.dir", str(path)))
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
    """Write the resolved recipe, which can be trained as it is: ``trireme train FOLDER/recipe.yaml``.

    Args:
        others: name -> text of further files to write beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)
    for name, content in {RECIPE: text, **(others or {})}.items():
        partial = folder / f".{name}.partial"
        partial.write_text(content)
        os.replace(partial, folder / name)


def refuse_other_recipe(recipe: RecipeConfig, checkpoint: Path) -> None:
    """Refuse an automatic resume that would not continue the same trajectory.

    Raises:
        UserError: keys that the losses depend on differ from the recipe in ``checkpoint``.
    """
    changed = changed_keys(recipe, checkpoint, resumes=True)
    if changed:
        raise UserError(
            Problem(
                "run.dir",
                f"holds a run of another recipe (changed: {shown(changed)}){_other_files(recipe, checkpoint, changed)}",
                f"choose another run.dir, start over with --fresh (the old folder is kept), or continue it with "
                f"--resume {checkpoint}",
                recipe.run.dir,
            )
        )


def _other_files(recipe: RecipeConfig, checkpoint: Path, changed: list[str]) -> str:
    """A clause for a message if ``model.weights`` has changed from one path to another; empty if it has not."""
    then = (saved_recipe(checkpoint).get("model") or {}).get("weights")
    if "model.weights" not in changed or then is None or recipe.model.weights is None:
        return ""
    return f"; model.weights={recipe.model.weights} holds other files than {then} did"


def weights_at(recipe: RecipeConfig, checkpoint: str | None, ema: bool) -> Path | None:
    """The checkpoint or run folder to evaluate; None means ``model.weights``. No weights are read yet.

    Raises:
        UserError: there are no weights, or no averaged weights for ``ema``.
    """
    folder = Path(os.path.expanduser(checkpoint or recipe.run.dir))
    if checkpoint is None and recipe.checkpoint.load_best:
        folder = best_checkpoint(folder / "checkpoints", recipe.checkpoint) or folder
    if checkpoint is not None and (folder / "adapter_config.json").is_file() and not (folder / MANIFEST).is_file():
        fix = f"leave --checkpoint out, and name the adapter in the recipe: {beside_base(folder)}"
        raise UserError(Problem("--checkpoint", "is an adapter as peft writes it, not a checkpoint", fix, checkpoint))
    if checkpoint is not None or checkpoints_at(folder):
        return folder
    if recipe.model.weights is None:
        fix = "train the recipe first, name a checkpoint or run folder with --checkpoint, or set model.weights"
        raise UserError(Problem("run.dir", "holds no checkpoint, so there are no weights", fix, str(folder)))
    if ema:
        fix = "name a checkpoint of a run with ema=average, or leave --ema out"
        raise UserError(Problem("--ema", "model.weights holds one set of weights", fix, recipe.model.weights))
    return None


def changed_keys(
    recipe: RecipeConfig, checkpoint: Path, parts: Iterable[str] | None = None, resumes: bool = False
) -> list[str]:
    """Keys that differ from the recipe in ``checkpoint``, without ``NOT_COMPARED`` and without other paths of the same
    files.

    Args:
        parts: parts of the recipe to compare; None means all.
        resumes: a run goes on, which compares its documents and the numbers of its base itself, wherever they lie.
    """
    found = dict(_differing(saved_recipe(checkpoint), recipe, ""))
    wanted = None if parts is None else tuple(parts)
    kept = {
        key: values
        for key, values in found.items()
        if not _within(key, NOT_COMPARED) and (wanted is None or _within(key, wanted))
    }
    return unlike(kept, recipe, checkpoint, resumes)


def saved_recipe(folder: Path) -> dict[str, Any]:
    """The recipe that a run, a checkpoint or a study has saved in its folder.

    Raises:
        UserError: the file cannot be read, or holds no recipe.
    """
    try:
        found = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except OSError as error:
        why = f"cannot be read: {error.strerror or error}"
    except (ValueError, RecursionError, yaml.YAMLError):  # ValueError: it is no text
        why = "is damaged: it is not YAML"
    else:
        if isinstance(found, dict):
            return found
        why = "is damaged: it holds no recipe"
    raise UserError(Problem(str(folder / RECIPE), why, "restore the file, or name another folder"))


def unwritable(path: Path, error: OSError) -> Problem:
    """The problem of a run folder that cannot be written."""
    return Problem(
        "run.dir",
        f"cannot be written: {error.strerror or error}",
        "choose a folder you may write to, for example run.dir=runs/mine, or free space on its disk",
        str(path),
    )


def _within(key: str, parts: tuple[str, ...]) -> bool:
    return any(key == part or key.startswith(f"{part}.") for part in parts)


def differences(then: Any, now: Any, path: str) -> list[str]:
    """Keys whose values differ. A key that is missing in an older recipe counts as its default, and two paths to the
    same place are equal."""
    return [key for key, _ in _differing(then, now, path)]


def _differing(then: Any, now: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Keys whose values differ, each with both values."""
    inside = _children(now)
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        if any(True for old, new in zip(then, now, strict=True) for _ in _differing(old, new, "")):
            yield path, (then, _plain(now))
        return
    if not isinstance(then, dict) or inside is None:
        if then != (value := _plain(now)) and not same_place(then, value):
            yield path, (then, value)
        return
    defaults = _defaults(now)
    for name in sorted({*then, *inside}):
        where = f"{path}.{name}" if path else str(name)
        value = inside.get(name)
        if name in then or _plain(value) != _plain(defaults.get(name)):
            yield from _differing(then.get(name), value, where)


def _children(value: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return value if isinstance(value, dict) else None


def _defaults(value: Any) -> dict[str, Any]:
    """Defaults of a dataclass's fields, or of a component's arguments."""
    if dataclasses.is_dataclass(value):
        made = {
            field.name: field.default_factory()
            for field in dataclasses.fields(value)
            if field.default_factory is not dataclasses.MISSING
        }
        return made | {field.name: field.default for field in dataclasses.fields(value) if field.name not in made}
    try:
        parameters = inspect.signature(locate(value["_target_"])).parameters
    except (KeyError, ImportError, TypeError, ValueError):  # no component, or one without a known signature
        return {}
    return {name: parameter.default for name, parameter in parameters.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
