"""From a recipe's name and command line overrides to plain data, through Hydra.

Hydra composes the files; it reports the first unknown key only, knows no near names and creates folders of its own.
So overrides of plain keys are passed as ``++key=value`` and judged afterwards by the typed schema, all at once; choices
of groups (``plan=ddp``) are looked up here; and Hydra's folders and log files are switched off. ``--cfg``, ``--info``
and ``--multirun`` go through the same ``hydra.main``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..configs.components import MISSING
from ..configs.values import did_you_mean
from ..errors import Problem, UserError
from .find_recipes import config_folders, find_recipe, group_options
from .hydra_errors import explain

SCHEMA = "schema_defaults"
"""Name of the typed schema's defaults, on which every recipe is composed."""


@dataclass
class Composed:
    """A recipe as plain data."""

    raw: dict[str, Any]
    """Nested dicts, lists and scalars, interpolations resolved; ``???`` where a value is missing."""
    recipe: Path
    """The recipe's file."""
    overrides: list[str]
    """Overrides that compose the same data again (in a rank, or for one job of a sweep)."""
    problems: list[Problem] = field(default_factory=list)
    """Choices that do not exist; to be reported together with the problems of the data."""


def compose(recipe: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str] = ()) -> Composed:
    """Compose a recipe.

    Args:
        recipe: a name such as ``pretrain/persimmon_stdlib``, or a path to a ``.yaml`` file.
        overrides: ``key=value``, ``group=option``, ``+new=value``, ``~key``.
        recipe_dirs: folders with recipes of the user's own, and groups under ``configs/`` in them.

    Raises:
        UserError: there is no such recipe, a file is not YAML, or the parts do not fit together.
    """
    path = find_recipe(recipe, recipe_dirs)
    accepted, problems = _prepare(overrides, config_folders(path, recipe_dirs))
    found: list[Composed] = []
    try:
        _hydra(path, recipe_dirs, [], accepted, lambda config: found.append(_composed(config, path, overrides)))
    except UserError as error:
        raise UserError(*problems, *error.problems) from error
    found[0].problems = problems
    return found[0]


def sweep(
    recipe: str,
    overrides: Sequence[str],
    recipe_dirs: Sequence[str],
    check: Callable[[list[Composed]], None],
    job: Callable[[Composed], Any],
    check_folder: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Call ``job`` for every combination of the overrides' choices (``optimizer.lr=1e-3,1e-4``): ``--multirun``.

    The run folder of each job gets the job's own choices as its last part. The first failure ends the sweep. What
    ``job`` returns is what a sweeper that chooses by results is told.

    Args:
        check: called first with all jobs, to refuse the sweep as a whole; not called for a sweeper that is not Hydra's
            own, since those choose a job by the results of earlier ones.
        check_folder: called before that with the folder that jobs get theirs in.
    """
    path, accepted = _for_sweep(recipe, overrides, recipe_dirs)
    folder = sweep_folder(path, overrides, recipe_dirs)
    check_folder(Path(folder))
    failures: list[BaseException] = []

    def guarded(config: Any) -> Any:
        if failures:
            return None
        try:
            return job(_composed(config, path, overrides))
        except BaseException as error:  # Hydra would print a message of its own; raised again below
            failures.append(error)

    if not chooses_by_results(overrides):
        check(sweep_jobs(recipe, overrides, recipe_dirs))
    _hydra(path, recipe_dirs, ["--multirun"], accepted, guarded, folder)
    if failures:
        raise failures[0]


def sweep_jobs(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> list[Composed]:
    """Every combination of the overrides' choices, none of them started."""
    path, accepted = _for_sweep(recipe, overrides, recipe_dirs)
    jobs: list[Composed] = []
    with TemporaryDirectory() as folder:
        _hydra(
            path,
            recipe_dirs,
            ["--multirun"],
            accepted,
            lambda config: jobs.append(_composed(config, path, overrides)),
            folder,
        )
    return jobs


def runs_on(composed: Composed) -> str:
    """What the recipe's ``launch`` part names: local or slurm."""
    return str((composed.raw.get("launch") or {}).get("kind", "local"))


def chooses_by_results(overrides: Sequence[str]) -> bool:
    """Whether a sweeper that is not Hydra's own makes the jobs: it chooses one by the results of earlier ones."""
    return any(text.lstrip("+").startswith("hydra/sweeper=") for text in overrides)


def _for_sweep(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> tuple[Path, list[str]]:
    path = find_recipe(recipe, recipe_dirs)
    accepted, problems = _prepare(overrides, config_folders(path, recipe_dirs))
    if problems:
        raise UserError(*problems)
    return path, accepted


def sweep_folder(path: Path, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> str:
    """Where the folders of a sweep's jobs go; Hydra notes the sweep there, and cannot resolve it by itself."""
    fixed = without_choices(overrides)
    try:
        run_dir = compose(str(path), fixed, recipe_dirs).raw["run"]["dir"]
    except UserError:  # a choice that only the sweep makes
        run_dir = f"runs/{path.stem}"
    return _sweep_root(run_dir, set(map(_key, fixed)))


def _sweep_root(run_dir: str, given: Collection[str]) -> str:
    """The folder that was named for the sweep (``given``: keys on the command line), or one beside the recipe's own
    run folder, in which a run of the same recipe lives."""
    return run_dir if "run.dir" in given else f"{run_dir}_sweep"


def without_choices(overrides: Sequence[str]) -> list[str]:
    """Overrides that are the same in every job of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    return [text for text in overrides if not parser.parse_override(text).is_sweep_override()]


def show(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], flags: Sequence[str]) -> None:
    """Print what a Hydra flag asks for: ``--cfg job``, ``--info defaults`` ..."""
    path = find_recipe(recipe, recipe_dirs)
    accepted, problems = _prepare(overrides, config_folders(path, recipe_dirs))
    if problems:
        raise UserError(*problems)
    _hydra(path, recipe_dirs, flags, accepted, lambda config: None)


def _prepare(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], list[Problem]]:
    """Overrides as Hydra shall see them; those that choose something that does not exist become problems."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parser, accepted, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            problems.append(
                Problem(
                    text,
                    f"cannot be read as an override: {str(error).splitlines()[0]}",
                    "write key=value; quote values that hold spaces, commas or brackets",
                )
            )
            continue
        key = override.key_or_group
        options = group_options(key, folders)
        if options:
            problem = _check_choice(override, options)
            problems += [problem] if problem else []
            accepted += [] if problem else [text]
        elif (
            override.type is OverrideType.CHANGE
            and override.package is None
            and not key.startswith(("hydra.", "hydra/"))
        ):
            accepted.append(f"++{text}")
        else:
            accepted.append(text)
    return accepted, problems


def _check_choice(override: Any, options: list[str]) -> Problem | None:
    value = override.value()
    choices = getattr(value, "list", value if isinstance(value, list) else [value])
    for choice in choices:
        name = getattr(choice, "text", choice)
        if isinstance(name, str) and not override.is_delete() and name not in options:
            fix = did_you_mean(name, options)
            near = fix.replace("did you mean ", f"did you mean {override.key_or_group}=")
            return Problem(override.key_or_group, "there is no such option", near, name)
    return None


def _composed(config: Any, path: Path, given: Sequence[str]) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    job = HydraConfig.get()
    overrides = [text for text in given if text.startswith("hydra.searchpath=")] + list(job.overrides.task)
    if job.mode is RunMode.MULTIRUN:
        # By key: a sweeper writes values in its own way (False for false).
        fixed = {_key(text) for text in without_choices(given)}
        chosen = [text for text in job.overrides.task if _key(text) not in fixed]
        with open_dict(config):
            if "run.dir" not in map(_key, chosen):
                name = ",".join(text.lstrip("+") for text in chosen).replace("/", "_")
                folder = _sweep_root(config.run.dir, fixed)
                config.run.dir = f"{folder}/{name or 'job'}"
        overrides.append(f"++run.dir={quoted(config.run.dir)}")
    raw: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    _restore_missing(raw, _without_schema(job.job.config_name, list(job.overrides.task)))
    return Composed(raw, path, overrides)


def _without_schema(name: str, overrides: list[str]) -> Any:
    """The same composition on top of no defaults.

    To OmegaConf a ``???`` that is merged over a value means nothing, so what a file leaves open would keep the default
    of the typed schema. Here it shows. Deletions are left out, for they may be of keys that only the schema has.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    ConfigStore.instance().store(name=SCHEMA, node={})
    overrides = [text for text in overrides if not text.startswith("~")]
    try:
        loader = GlobalHydra.instance().config_loader()
        return OmegaConf.to_container(loader.load_configuration(name, overrides, RunMode.RUN), throw_on_missing=False)
    except (HydraException, OmegaConfBaseException):
        return {}
    finally:
        register_schema()


def _restore_missing(raw: dict[str, Any], bare: Any) -> None:
    """Put ``???`` back where a file says that a value must be given and nothing after it gives one."""
    for key, value in bare.items() if isinstance(bare, dict) else ():
        if value == MISSING and key in raw:
            raw[key] = MISSING
        elif isinstance(raw.get(key), dict):
            _restore_missing(raw[key], value)


def quoted(value: str) -> str:
    """A string as a value of an override, whatever characters it holds."""
    return "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'"


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+")


def _hydra(
    path: Path,
    recipe_dirs: Sequence[str],
    flags: Sequence[str],
    overrides: Sequence[str],
    task: Callable[[Any], Any],
    sweep_folder: str = ".",
) -> None:
    """Run ``hydra.main`` on a recipe file; Hydra writes nothing but ``multirun.yaml`` into a sweep's folder."""
    import hydra

    from .searchpath import added_folders

    register_schema()
    # A nested config name would put the recipe into a package of that name, so the name is always the bare stem.
    arguments = [f"--config-path={path.parent.resolve()}", f"--config-name={path.stem}", *flags]
    quiet = [
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        f"hydra.sweep.dir={quoted(sweep_folder)}",
        "hydra.sweep.subdir=.",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    with _arguments([*arguments, *quiet, *overrides]), added_folders(config_folders(path, recipe_dirs)[1:]):
        try:
            hydra.main(version_base="1.3", config_path=None)(task)()
        except Exception as error:
            problem = explain(error)
            if problem is None:
                raise
            raise UserError(problem) from error


def register_schema() -> None:
    """Make the defaults of all typed fields composable, so that ``--cfg job`` and interpolations see every key."""
    from hydra.core.config_store import ConfigStore

    from ..configs.schema import RecipeConfig
    from ..configs.validate import schema_defaults

    ConfigStore.instance().store(name=SCHEMA, node=schema_defaults(RecipeConfig))


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """``hydra.main`` reads ``sys.argv``, and without HYDRA_FULL_ERROR it would print errors and exit by itself."""
    before, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [sys.argv[0], *arguments], "1"
    try:
        yield
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
