"""Compose a recipe's name and the overrides of the command line into plain data, through Hydra.

Hydra merges the files. The modules around it check recipe files (``recipe_file.py``) and overrides (``overrides.py``)
before Hydra reads them, drop arguments of a replaced ``_target_`` (``component_layers.py``) and reword Hydra's errors
(``hydra_errors.py``). Hydra's own folders and log files are switched off. ``--cfg``, ``--info`` and ``--multirun`` go
through the same ``hydra.main``.
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
from .component_layers import SCHEMA, TARGET, components_begin_anew, left_over, without
from .failures import OWN_LAUNCH
from .find_recipes import PACKAGE, config_folders, find_recipe, groups_of_base
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
    """Choices that do not exist, to be reported together with the problems of the data."""
    job: str = ""
    """In a sweep: the choices of this job, such as ``optimizer.lr=0.01,plan=ddp``."""
    notes: list[str] = field(default_factory=list)
    """Notes on keys that were left out or added because of the overrides, to be printed once."""


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
        if void:  # composed again, so that interpolations see the change
            composed = given.compose([*given.accepted, *without(void, composed.raw)])
    except UserError as error:
        raise UserError(*given.problems, *error.problems) from error
    return replace(composed, problems=given.problems, notes=[*given.notes, *_left_out(void)])


class _Given:
    """Input of one command: a recipe's file, its folders, and overrides in the form that is passed to Hydra."""

    def __init__(self, recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], sweeps: bool = False) -> None:
        self.path = find_recipe(recipe, recipe_dirs)
        check_recipe_file(self.path)
        beside = self.path.resolve().parent
        own = PACKAGE / "recipes" not in beside.parents
        import_from(*([beside] if own else []), Path.cwd())
        self.recipe_dirs = recipe_dirs
        self.folders = config_folders(self.path, recipe_dirs)
        self.accepted, self.problems = prepare(overrides, self.folders, sweeps)
        self.notes: list[str] = []
        self._add_groups()
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
        """The recipe without overrides, interpolations unresolved, and the files that it is merged from. Both are empty
        if the recipe does not compose without overrides."""
        from omegaconf import OmegaConf

        found: list[Any] = []
        searchpath = [text for text in self.accepted if key_of(text) == "hydra.searchpath"]
        try:
            files = self.hydra([], searchpath, found.append)
        except UserError:
            return {}, []
        return OmegaConf.to_container(found[0], resolve=False), files  # type: ignore[return-value]

    @cached_property
    def own(self) -> Any:
        """What the user's own recipe file writes. Empty for a packaged recipe, and for the recipe of a run, which holds
        the values of all groups too."""
        from omegaconf import OmegaConf

        if PACKAGE / "recipes" in self.path.resolve().parents:
            return {}
        written: Any = OmegaConf.to_container(OmegaConf.load(self.path), resolve=False)
        return written if "defaults" in written else {}

    @cached_property
    def chosen(self) -> dict[str, Any]:
        """The recipe with the files that overrides choose in every job, and without their values."""
        from omegaconf import OmegaConf

        texts = [text for text in without_choices(self.accepted) if chooses(text, self.folders)]
        if not texts or not any(TARGET in text for text in self.accepted):
            return self.as_written[0]
        found: list[Any] = []
        searchpath = [text for text in self.accepted if key_of(text) == "hydra.searchpath"]
        try:
            self.hydra([], [*searchpath, *texts], found.append)
        except UserError:
            return self.as_written[0]
        return OmegaConf.to_container(found[0], resolve=False)  # type: ignore[return-value]

    def void(self, raw: dict[str, Any]) -> dict[str, str]:
        """Keys of a composed recipe that the overrides made void, each with the reason."""
        if OWN_LAUNCH in os.environ:  # a rank's overrides leave them out already (``rank_arguments``)
            return {}
        if not any(chooses(text, self.folders) or TARGET in text for text in self.accepted):
            return {}
        return left_over(raw, self.as_written[0], self.chosen, self.accepted, self.own)

    def hydra(
        self, flags: Sequence[str], overrides: Sequence[str], task: Callable[[Any], Any], out: str = "."
    ) -> list[str]:
        return _hydra(self.path, self.recipe_dirs, flags, overrides, task, out)

    def _add_groups(self) -> None:
        """A choice of a group that the recipe's defaults do not have is added to them: Hydra would not replace it."""
        for index, text in enumerate(self.accepted):
            if text.startswith("~") or key_of(text) in groups_of_base() or not chooses(text, self.folders):
                continue
            there = {file.partition("/")[0] for file in self.as_written[1]}
            if there and key_of(text) not in there:
                self.accepted[index] = f"+{text}"

    def _add_callbacks(self) -> None:
        """Rewrite ``callbacks=export`` so that a single callback is added to the recipe's; a set replaces them."""
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
        """Problems, with the override that causes them as the field where Hydra does not tell the key."""
        problem = error.problems[0]
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
    """Notes on keys that were left out, one for each reason."""
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

    The run folder of each job ends in the job's own choices. The first failure ends the sweep. The value that ``job``
    returns is the objective for a sweeper that chooses by results.

    Args:
        check: called with all jobs before the first one, to refuse the sweep as a whole. It is only called for Hydra's
            own sweeper, since others choose a job by the results of earlier ones.
        check_folder: called before ``check`` with the folder that holds the jobs' run folders.
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
        except BaseException as error:  # raised again below; Hydra would print a message of its own
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
    """One job, without the keys that its choices make void."""
    composed = _composed(config, given.path, given.accepted)
    void = left_over(composed.raw, given.as_written[0], given.chosen, composed.overrides, given.own)
    texts = without(void, composed.raw)
    for key in void:
        *parents, last = key.split(".")
        node = composed.raw
        for parent in parents:
            node = node[parent]
        del node[last]
    return replace(composed, overrides=[*composed.overrides, *texts], notes=[*given.notes, *_left_out(void)])


def runs_on(composed: Composed) -> str:
    """Kind of the recipe's ``launch`` part: local or slurm."""
    return str((composed.raw.get("launch") or {}).get("kind", "local"))


def chooses_by_results(overrides: Sequence[str]) -> bool:
    """Whether the overrides name a sweeper other than Hydra's own: it chooses jobs by the results of earlier ones."""
    return any(text.lstrip("+").startswith("hydra/sweeper=") for text in overrides)


def _for_sweep(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> _Given:
    given = _Given(recipe, overrides, recipe_dirs, sweeps=True)
    if given.problems:
        raise UserError(*given.problems)
    # Composed and cached now, since Hydra cannot compose a second recipe inside a job.
    _ = given.as_written, given.chosen
    return given


def sweep_folder(path: Path, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> str:
    """The folder that holds the run folders of a sweep. Hydra needs it before it composes a job."""
    fixed = without_choices(overrides)
    try:
        run_dir = compose(str(path), fixed, recipe_dirs).raw["run"]["dir"] or f"runs/{path.stem}"
    except UserError:  # the recipe is only complete with the choices of the sweep
        run_dir = f"runs/{path.stem}"
    return _sweep_root(run_dir, set(map(key_of, fixed)))


def _sweep_root(run_dir: str, given: Collection[str]) -> str:
    """The folder that the command line names for the sweep (``given``: its keys), else one beside the recipe's run
    folder, which may hold a run of the same recipe."""
    return run_dir if "run.dir" in given else f"{run_dir}_sweep"


def without_choices(overrides: Sequence[str]) -> list[str]:
    """Overrides that are the same in every job of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def fixed(text: str) -> bool:
        try:
            return not parser.parse_override(text).is_sweep_override()
        except HydraException:  # refused when the recipe is composed
            return True

    return [text for text in overrides if fixed(text)]


def show(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], flags: Sequence[str]) -> None:
    """Print the answer to a flag of Hydra: ``--cfg job``, ``--info defaults`` ..."""
    given = _Given(recipe, overrides, recipe_dirs)
    if given.problems:
        raise UserError(*given.problems)
    raw = given.compose(given.accepted).raw
    given.hydra(flags, [*given.accepted, *without(given.void(raw), raw)], lambda config: None)


def _composed(config: Any, path: Path, given: Sequence[str]) -> Composed:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    job = HydraConfig.get()
    overrides = [text for text in given if text.startswith("hydra.searchpath=")] + list(job.overrides.task)
    name = ""
    if job.mode is RunMode.MULTIRUN:
        # Compared by key, since a sweeper may spell values differently (False for false).
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
    """A composed recipe as plain data. A reference to an open value (``???``) is open itself."""
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
        names of the merged files without suffix, such as ``callbacks/default``.
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
        # Without _self_ a recipe's own values come last, as its author expects, so Hydra's warning is not needed.
        warnings.filterwarnings("ignore", message=".*missing `_self_`")
        failures: list[Exception] = []

        def quiet_task(config: Any) -> Any:  # keeps exceptions from Hydra, which would print a line of its own
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
    """The recipe's file under a name that ends in .yaml, the only suffix that Hydra reads."""
    if path.suffix == ".yaml":
        yield path.resolve().parent / path.name
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / f"{path.stem}.yaml"
        copy.write_bytes(path.read_bytes())
        yield copy


def register_schema() -> None:
    """Register the defaults of all typed fields with Hydra, so that ``--cfg job`` and interpolations see every key."""
    from hydra.core.config_store import ConfigStore

    from ..configs.schema import RecipeConfig
    from ..configs.validate import schema_defaults

    ConfigStore.instance().store(name=SCHEMA, node=schema_defaults(RecipeConfig))


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Set ``sys.argv``, which ``hydra.main`` reads, and HYDRA_FULL_ERROR, without which it prints errors and exits."""
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
