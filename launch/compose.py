"""From a recipe's name and command line overrides to plain data, through Hydra.

Hydra composes the files. What it leaves to be wished for is done around it: files are looked at before it reads them
(``recipe_file.py``), overrides before it parses them (``overrides.py``), arguments of a replaced ``_target_`` go
(``component_layers.py``), its errors are reworded (``hydra_errors.py``), and its folders and log files are switched
off. ``--cfg``, ``--info`` and ``--multirun`` go through the same ``hydra.main``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import Problem, UserError
from ..trainer.component import import_from
from .check_environment import check_environment
from .component_layers import SCHEMA, TARGET, components_begin_anew, left_over
from .find_recipes import PACKAGE, config_folders, find_recipe
from .hydra_errors import UNKNOWN, explain
from .overrides import CALLBACKS, chooses, key_of, prepare, quoted, single_callbacks, value_of
from .recipe_file import check_recipe_file, hides_base, missing_base, refuse_scalars


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
    job: str = ""
    """Of a sweep's job: the choices that are its own, such as ``optimizer.lr=0.01,plan=ddp``."""
    notes: list[str] = field(default_factory=list)
    """What was left out or added to make the overrides mean what they say; to be told once."""


def compose(recipe: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str] = ()) -> Composed:
    """Compose a recipe.

    Args:
        recipe: a name such as ``pretrain/persimmon_stdlib``, or a path to a ``.yaml`` file.
        overrides: ``key=value``, ``group=option``, ``+new=value``, ``~key``.
        recipe_dirs: folders with recipes of the user's own, and groups under ``configs/`` in them.

    Raises:
        UserError: there is no such recipe, a file is not YAML, or the parts do not fit together.
    """
    check_environment()
    given = _Given(recipe, overrides, recipe_dirs)
    try:
        composed = given.compose(given.accepted)
        void = given.void(composed.raw)
        if void:  # again, so that interpolations see it
            composed = given.compose([*given.accepted, *(f"~{key}" for key in void)])
    except UserError as error:
        raise UserError(*given.problems, *error.problems) from error
    return replace(composed, problems=given.problems, notes=[*given.notes, *_left_out(void)])


class _Given:
    """What one command was given: a recipe's file, folders, and overrides as Hydra shall see them."""

    def __init__(self, recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], sweeps: bool = False) -> None:
        self.path = find_recipe(recipe, recipe_dirs)
        check_recipe_file(self.path)
        if PACKAGE not in self.path.resolve().parents:
            import_from(self.path.resolve().parent, Path.cwd())
        self.recipe_dirs = recipe_dirs
        self.folders = config_folders(self.path, recipe_dirs)
        self.accepted, self.problems = prepare(overrides, self.folders, sweeps)
        self.notes: list[str] = []
        self._add_callbacks()

    def compose(self, overrides: Sequence[str]) -> Composed:
        """The recipe under ``overrides``."""
        found: list[Composed] = []
        try:
            self.hydra([], overrides, lambda config: found.append(_composed(config, self.path, overrides)))
        except UserError as error:
            raise UserError(*self._blamed(error, overrides)) from error
        return found[0]

    @cached_property
    def as_written(self) -> tuple[dict[str, Any], list[str]]:
        """The recipe without overrides, interpolations unresolved, and the files it is made of; nothing where it does
        not compose without them."""
        from omegaconf import OmegaConf

        found: list[Any] = []
        searchpath = [text for text in self.accepted if key_of(text) == "hydra.searchpath"]
        try:
            files = self.hydra([], searchpath, found.append)
        except UserError:
            return {}, []
        return OmegaConf.to_container(found[0], resolve=False), files  # type: ignore[return-value]

    def void(self, raw: dict[str, Any]) -> dict[str, str]:
        """Keys of a composed recipe that the overrides made void, with why."""
        if not any(chooses(text, self.folders) or TARGET in text for text in self.accepted):
            return {}
        return left_over(raw, self.as_written[0], self.accepted)

    def hydra(
        self, flags: Sequence[str], overrides: Sequence[str], task: Callable[[Any], Any], out: str = "."
    ) -> list[str]:
        return _hydra(self.path, self.recipe_dirs, flags, overrides, task, out)

    def _add_callbacks(self) -> None:
        """A single callback (``callbacks=export``) is added to the recipe's; a set of them replaces those."""
        for index, text in enumerate(self.accepted):
            names = single_callbacks(text, self.folders)
            if not names:
                continue
            files = [file.partition("/") for file in self.as_written[1]]
            before = [name for group, _, name in files if group == CALLBACKS]
            names = [*before, *(name for name in names if name not in before)]
            self.accepted[index] = f"{CALLBACKS}=[{','.join(names)}]"
            self.notes.append(f"{text} is added to the recipe's: {self.accepted[index]}")

    def _blamed(self, error: UserError, overrides: Sequence[str]) -> Sequence[Problem | str]:
        """Problems with the override that makes them, where Hydra does not tell the key."""
        (problem,) = error.problems
        if not isinstance(problem, Problem) or problem.field != UNKNOWN:
            return error.problems
        for text in [*overrides, None]:
            try:
                self.hydra([], [text] if text else [], lambda config: _composed(config, self.path, []))
            except UserError:
                if text is None:
                    return [replace(problem, field=str(self.path))]
            else:
                if text is None:
                    break
                continue
            return [replace(problem, field=key_of(text), value=value_of(text) or None)]
        return [replace(problem, field=" ".join(overrides))]


def _left_out(void: Mapping[str, str]) -> list[str]:
    """One line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for key in sorted(void):
        by_reason.setdefault(void[key], []).append(key)
    return [f"left out: {', '.join(keys)} ({why})" for why, keys in by_reason.items()]


def sweep(
    recipe: str,
    overrides: Sequence[str],
    recipe_dirs: Sequence[str],
    check: Callable[[list[Composed]], Any],
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
    given = _for_sweep(recipe, overrides, recipe_dirs)
    folder = sweep_folder(given.path, overrides, recipe_dirs)
    check_folder(Path(folder))
    failures: list[BaseException] = []

    def guarded(config: Any) -> Any:
        if failures:
            return None
        try:
            return job(_of_sweep(config, given))
        except BaseException as error:  # Hydra would print a message of its own; raised again below
            failures.append(error)

    if not chooses_by_results(overrides):
        check(sweep_jobs(recipe, overrides, recipe_dirs))
    given.hydra(["--multirun"], given.accepted, guarded, folder)
    if failures:
        raise failures[0]


def sweep_jobs(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> list[Composed]:
    """Every combination of the overrides' choices, none of them started."""
    given = _for_sweep(recipe, overrides, recipe_dirs)
    jobs: list[Composed] = []
    with TemporaryDirectory() as folder:
        given.hydra(["--multirun"], given.accepted, lambda config: jobs.append(_of_sweep(config, given)), folder)
    return jobs


def _of_sweep(config: Any, given: _Given) -> Composed:
    """One job, without what its choices make void."""
    composed = _composed(config, given.path, given.accepted)
    void = left_over(composed.raw, given.as_written[0], composed.overrides)
    for key in void:
        *parents, last = key.split(".")
        node = composed.raw
        for parent in parents:
            node = node[parent]
        del node[last]
    return replace(
        composed, overrides=[*composed.overrides, *(f"~{key}" for key in void)], notes=[*given.notes, *_left_out(void)]
    )


def runs_on(composed: Composed) -> str:
    """What the recipe's ``launch`` part names: local or slurm."""
    return str((composed.raw.get("launch") or {}).get("kind", "local"))


def chooses_by_results(overrides: Sequence[str]) -> bool:
    """Whether a sweeper that is not Hydra's own makes the jobs: it chooses one by the results of earlier ones."""
    return any(text.lstrip("+").startswith("hydra/sweeper=") for text in overrides)


def _for_sweep(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> _Given:
    given = _Given(recipe, overrides, recipe_dirs, sweeps=True)
    if given.problems:
        raise UserError(*given.problems)
    _ = given.as_written  # composed now: inside a job Hydra is at work already
    return given


def sweep_folder(path: Path, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> str:
    """Where the folders of a sweep's jobs go; Hydra notes the sweep there, and cannot resolve it by itself."""
    fixed = without_choices(overrides)
    try:
        run_dir = compose(str(path), fixed, recipe_dirs).raw["run"]["dir"] or f"runs/{path.stem}"
    except UserError:  # a choice that only the sweep makes
        run_dir = f"runs/{path.stem}"
    return _sweep_root(run_dir, set(map(key_of, fixed)))


def _sweep_root(run_dir: str, given: Collection[str]) -> str:
    """The folder that was named for the sweep (``given``: keys on the command line), or one beside the recipe's own
    run folder, in which a run of the same recipe lives."""
    return run_dir if "run.dir" in given else f"{run_dir}_sweep"


def without_choices(overrides: Sequence[str]) -> list[str]:
    """Overrides that are the same in every job of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def fixed(text: str) -> bool:
        try:
            return not parser.parse_override(text).is_sweep_override()
        except HydraException:  # refused when it is composed
            return True

    return [text for text in overrides if fixed(text)]


def show(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], flags: Sequence[str]) -> None:
    """Print what a Hydra flag asks for: ``--cfg job``, ``--info defaults`` ..."""
    given = _Given(recipe, overrides, recipe_dirs)
    if given.problems:
        raise UserError(*given.problems)
    void = given.void(given.compose(given.accepted).raw)
    given.hydra(flags, [*given.accepted, *(f"~{key}" for key in void)], lambda config: None)


def _composed(config: Any, path: Path, given: Sequence[str]) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    job = HydraConfig.get()
    overrides = [text for text in given if text.startswith("hydra.searchpath=")] + list(job.overrides.task)
    name = ""
    if job.mode is RunMode.MULTIRUN:
        # By key: a sweeper writes values in its own way (False for false).
        fixed = {key_of(text) for text in without_choices(given)}
        chosen = [text for text in job.overrides.task if key_of(text) not in fixed]
        if problems := refuse_scalars(OmegaConf.to_container(config, resolve=False)):  # type: ignore[arg-type]
            raise UserError(*problems)
        name = ",".join(text.lstrip("+") for text in chosen)
        with open_dict(config):
            if "run.dir" not in map(key_of, chosen):
                folder = _sweep_root(config.run.dir, fixed)
                config.run.dir = f"{folder}/{name.replace('/', '_') or 'job'}"
        overrides.append(f"++run.dir={quoted(config.run.dir)}")
    raw: Any = _resolved(config)
    if problems := [*missing_base(raw, path), *refuse_scalars(raw)]:
        raise UserError(*problems)
    return Composed(raw, path, overrides, job=name)


def _resolved(config: Any) -> Any:
    """Plain data; what refers to a value that must be given must be given too."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import InterpolationToMissingValueError

    while True:
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
        except InterpolationToMissingValueError as error:
            if not error.full_key or OmegaConf.is_missing(config, error.full_key):
                raise
            with open_dict(config):
                OmegaConf.update(config, error.full_key, "???")


def _hydra(
    path: Path,
    recipe_dirs: Sequence[str],
    flags: Sequence[str],
    overrides: Sequence[str],
    task: Callable[[Any], Any],
    sweep_folder: str = ".",
) -> list[str]:
    """Run ``hydra.main`` on a recipe file; Hydra writes nothing but ``multirun.yaml`` into a sweep's folder.

    Returns:
        the files that were merged, without suffix: ``callbacks/default``.
    """
    import hydra

    from .searchpath import added_folders

    register_schema()
    quiet = [
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        f"hydra.sweep.dir={quoted(str(sweep_folder))}",
        "hydra.sweep.subdir=.",
        "hydra/job_logging=none",
        "hydra/hydra_logging=none",
    ]
    with (
        _as_yaml(path) as file,
        # A nested config name would put the recipe into a package of that name, so the name is always the bare stem.
        _arguments([f"--config-path={file.parent}", f"--config-name={file.stem}", *flags, *quiet, *overrides]),
        added_folders([path.parent, *config_folders(path, recipe_dirs)[1:]]),
        components_begin_anew() as files,
        warnings.catch_warnings(),
    ):
        # Without _self_ a recipe's own values come last, which is what its author means.
        warnings.filterwarnings("ignore", message=".*missing `_self_`")
        failures: list[Exception] = []

        def quiet_task(config: Any) -> Any:  # of an exception in it, Hydra would print a line of its own
            try:
                return task(config)
            except Exception as error:
                failures.append(error)

        try:
            hydra.main(version_base="1.3", config_path=None)(quiet_task)()
            if failures:
                raise failures[0]
        except UserError:
            raise
        except RecursionError as error:
            raise UserError(hides_base(path) or explain(error)) from error
        except Exception as error:
            raise UserError(explain(error)) from error
    return files


@contextmanager
def _as_yaml(path: Path) -> Iterator[Path]:
    """The recipe's file under a name that Hydra reads: it knows no suffix but .yaml."""
    if path.suffix == ".yaml":
        yield path.resolve().parent / path.name
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.yaml"
        copy.write_bytes(path.read_bytes())
        yield copy


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
