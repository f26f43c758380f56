"""The class of a composed recipe, and its construction from what Hydra merged: the recipe as plain data, the overrides
that reproduce this data, and the problems found while composing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..configs.components import MISSING
from ..configs.validate import UNKNOWN_KEY
from ..errors import Problem, UserError
from .hydra_errors import explain
from .overrides import key_of, quoted, without_choices
from .recipe_file import missing_base, refuse_scalars


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
    """Choices and references that do not exist, to be reported together with the problems of the data."""
    job: str = ""
    """In a sweep: the choices of this job, such as ``optimizer.lr=0.01,plan=ddp``."""
    notes: list[str] = field(default_factory=list)
    """Notes on keys that were left out or added because of the overrides, to be printed once."""

    def with_problems_of_values(self, found: Sequence[Problem]) -> list[Problem]:
        """The recipe's problems, followed by those of its values.

        A choice that does not exist was replaced by a default file. Problems of this file's values are left out, except
        for keys that no choice has. A reference to nothing was replaced by ``???``. Problems of this value are left out
        too, also inside of a list.

        Args:
            found: problems of the values.
        """
        unknown = tuple(f"{problem.field}." for problem in self.problems)
        around = {problem.field.rpartition(".")[0] for problem in self.problems}
        values = [
            each
            for each in found
            if each.why == UNKNOWN_KEY or (not f"{each.field}.".startswith(unknown) and each.field not in around)
        ]
        return [*self.problems, *values]


def runs_on(composed: Composed) -> str:
    """Kind of the recipe's ``launch`` part: local or slurm."""
    return str((composed.raw.get("launch") or {}).get("kind", "local"))


def as_composed(config: Any, path: Path, given: Sequence[str], folders: Sequence[Path]) -> Composed:
    """The recipe as plain data, from what Hydra merged.

    Args:
        config: the merged OmegaConf node.
        path: the recipe's file.
        given: overrides that were passed to Hydra, with all choices of a sweep.
        folders: folders of groups.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf, open_dict

    job = HydraConfig.get()
    task = list(_resolved_texts(job.overrides.task))
    overrides = [text for text in given if text.startswith("hydra.searchpath=")] + task
    name = ""
    if job.mode is RunMode.MULTIRUN:
        # Compared by key, since a sweeper may spell values differently (False for false).
        fixed = {key_of(text) for text in without_choices(given)}
        chosen = [text for text in task if key_of(text) not in fixed]
        plain: Any = OmegaConf.to_container(config, resolve=False)
        if problems := refuse_scalars(plain, folders):
            raise UserError(*problems)
        name = ",".join(text.lstrip("+") for text in chosen)
        with open_dict(config):
            if "run.dir" not in map(key_of, chosen):
                folder = sweep_root(config.run.dir, fixed)
                config.run.dir = f"{folder}/{name.replace('/', '_') or 'job'}"
        overrides.append(f"++run.dir={quoted(config.run.dir)}")
    raw, unresolved = _resolved(config)
    if problems := [*missing_base(raw, path), *refuse_scalars(raw, folders)]:
        raise UserError(*problems)
    unresolved += _with_files(raw, str(job.runtime.choices.get("plan")), folders)
    return Composed(raw, path, overrides, unresolved, job=name)


def _with_files(raw: dict[str, Any], plan: str, folders: Sequence[Path]) -> list[Problem]:
    """Put options of FSDP in the place of a file that the plan names; returns the problems of the file.

    Args:
        plan: the chosen file of ``configs/plan``, whose options count where the file says nothing.
    """
    path = raw["plan"].get("fsdp") if isinstance(raw.get("plan"), dict) else None
    if not isinstance(path, str) or path == MISSING:
        return []
    import yaml

    from .fsdp_options import with_fsdp_file

    files = (folder / "plan" / f"{plan}.yaml" for folder in folders)
    file = next((file for file in files if file.is_file()), None)
    written = yaml.safe_load(file.read_text(encoding="utf-8")) if file is not None else {}
    return with_fsdp_file(raw["plan"], path, (written or {}).get("fsdp") or {})


def _resolved_texts(texts: Any) -> Iterator[str]:
    """Overrides with their references resolved, such as a time; one that cannot be resolved is left as it is."""
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationResolutionError

    for index, plain in enumerate(OmegaConf.to_container(texts, resolve=False)):  # type: ignore[arg-type]
        try:
            yield texts[index]
        except InterpolationResolutionError:  # a problem of the key that it sets
            yield str(plain)


def _resolved(config: Any) -> tuple[Any, list[Problem]]:
    """A composed recipe as plain data, and the problems of its references. A reference to an open value (``???``), or
    to nothing, is open itself."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import InterpolationResolutionError, InterpolationToMissingValueError

    problems: list[Problem] = []
    while True:
        try:
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=False), problems
        except InterpolationResolutionError as error:
            key = error.full_key or ""
            dotted = re.sub(r"\[(\d+)\]", r".\1", key)
            written = _written(config, dotted)
            if written is None:  # the key of a mapping whose keys hold dots
                raise
            if not isinstance(error, InterpolationToMissingValueError):
                problems.append(replace(explain(error), field=dotted, value=written))
            with open_dict(config):
                OmegaConf.update(config, key, "???")


def _written(config: Any, key: str) -> str | None:
    """The reference at a key as it was written; None if there is none."""
    from omegaconf import OmegaConf

    value: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        if isinstance(value, list):
            value = dict(zip(map(str, range(len(value))), value, strict=True))
        value = value.get(part) if isinstance(value, dict) else None
    return value if isinstance(value, str) and "${" in value else None


def sweep_root(run_dir: str, given: Collection[str]) -> str:
    """The folder that the command line names for the sweep (``given``: its keys), else one beside the recipe's run
    folder, which may hold a run of the same recipe."""
    return run_dir if "run.dir" in given else f"{run_dir}_sweep"
