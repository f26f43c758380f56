"""A composed recipe: Hydra's merged nodes turned into plain data, with the overrides that compose it again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
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
    """Choices that do not exist, to be reported together with the problems of the data."""
    job: str = ""
    """In a sweep: the choices of this job, such as ``optimizer.lr=0.01,plan=ddp``."""
    notes: list[str] = field(default_factory=list)
    """Notes on keys that were left out or added because of the overrides, to be printed once."""


def runs_on(composed: Composed) -> str:
    """Kind of the recipe's ``launch`` part: local or slurm."""
    return str((composed.raw.get("launch") or {}).get("kind", "local"))


def as_composed(config: Any, path: Path, given: Sequence[str]) -> Composed:
    """The recipe as plain data, from what Hydra merged.

    Args:
        config: the merged OmegaConf node.
        path: the recipe's file.
        given: overrides that were passed to Hydra, with all choices of a sweep.
    """
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
                folder = sweep_root(config.run.dir, fixed)
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


def sweep_root(run_dir: str, given: Collection[str]) -> str:
    """The folder that the command line names for the sweep (``given``: its keys), else one beside the recipe's run
    folder, which may hold a run of the same recipe."""
    return run_dir if "run.dir" in given else f"{run_dir}_sweep"
