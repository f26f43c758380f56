"""The ``search`` part of a recipe: the keys that ``trireme search`` varies, its engine, objectives and study."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import refuse
from ...trainer.component import Component
from ...trainer.folders import name_problem
from ...trainer.interruption import parse_time
from .engines.engine import Engine, build_engine, engine_class
from .read_space import read_space
from .space import Space, is_path

OPTUNA = "trireme.launch.search.engines.optuna_engine.Optuna"
LEAST = {"trials": 1, "jobs": 1, "workers": 1, "retries": 0, "max_failures": 1, "seed": 0}
"""Smallest values of whole numbers."""

IN_MEMORY = re.compile(r"sqlite(\+\w+)?:/{2,3}(:memory:)?")


@dataclass
class SearchConfig:
    """A search for the best values of some keys; ``trireme train`` ignores it."""

    space: dict[str, Any] | str = field(default_factory=dict)
    """Values to try by dotted key or group: ``{low, high, log, step}``, a list of choices, either with ``when``. Or the
    dotted path of a function that takes a trial of optuna and returns values by key."""
    objectives: dict[str, Literal["min", "max"]] = field(default_factory=dict)
    """Metrics to minimise or maximise; empty takes ``checkpoint.metric``. Several make a Pareto front."""
    function: str | None = None
    """Dotted path of a function that takes a run's last metrics and returns the values of ``objectives``: a number, a
    list, or a mapping by name. null takes the metrics of these names themselves."""
    take: Literal["last", "best"] = "last"
    """Which of a trial's values of a metric counts."""
    trials: int = 20
    """Trials of the whole study, those of earlier starts included."""
    time: str | int | None = None
    """Time after which no trial begins: "HH:MM:SS", "D-HH:MM:SS" or "MM", in quotes."""
    trial_time: str | int | None = None
    """Time after which a trial is ended, in the same notation."""
    first: list[dict[str, Any]] = field(default_factory=list)
    """Trials to begin with: values by key. Keys that are left out are sampled."""
    own_first: bool = True
    """Begin with the recipe's own values, if the space holds them, so that the search can say what it has gained."""
    jobs: int = 1
    """Trials at once on this machine, which share out its cores and devices."""
    workers: int = 1
    """Workers in a SLURM job (``launch=slurm``), each a task of an array on a machine of its own."""
    engine: Component = field(default_factory=lambda: {"_target_": OPTUNA})
    """Engine that chooses the trials: optuna, Ray Tune (``search=ray``), W&B (``search=wandb``), SigOpt
    (``search=sigopt``) or a class of your own (docs/search.md)."""
    sampler: Component | None = None
    """Sampler, such as ``optuna.samplers.TPESampler``; null takes optuna's own choice."""
    pruner: Component | None = None
    """Pruner, such as ``optuna.pruners.MedianPruner``, which judges by evaluations during a trial; null prunes
    nothing."""
    seed: int = 0
    """Seed of the sampler: with one job and one worker a study repeats."""
    study: str | None = None
    """Name of the study; null takes that of its folder."""
    storage: str | None = None
    """Database of the study (``sqlite:///FILE``, ``postgresql://...``, ``mysql://...``); null keeps a journal in its
    folder."""
    retries: int = 2
    """How often a trial whose process was killed goes on from its last checkpoint before it counts as failed."""
    max_failures: int = 3
    """Failed trials in a row after which the search ends."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                yield f"{name}={getattr(self, name)} is below {least}; use {least} or more"
        for name in ("time", "trial_time"):
            if (value := getattr(self, name)) is not None:
                try:
                    parse_time(value)
                except ValueError as error:
                    yield str(error).replace("max_time", name, 1)
        if self.study is not None and (wrong := name_problem(self.study)):
            yield f"study={self.study!r} {wrong}"
        if self.storage is not None and "://" not in self.storage:
            yield f"storage={self.storage!r} is not the URL of a database; write sqlite:///FILE, or leave it out"
        elif self.storage is not None and IN_MEMORY.fullmatch(self.storage.partition("?")[0]):
            why = "is a database in memory, which ends with the process"
            yield f"storage={self.storage!r} is wrong because it {why}; write sqlite:///FILE, or leave it out"
        if isinstance(self.space, str):
            yield from self._engine_flaws(None) if is_path(self.space) else ()  # another text is refused as a whole
            return
        space, flaws = read_space(self.space)
        yield from flaws or self._engine_flaws(space)
        for number, point in enumerate(self.first):
            yield from (f"first.{number}.{flaw}" for flaw in space.flaws_of(point))

    def _engine_flaws(self, space: Space | None) -> Iterator[str]:
        """Options that the engine does not support, and mistakes in its arguments."""
        try:
            cls = engine_class(self.engine)
        except Exception:  # the check of components says it
            return
        if not (isinstance(cls, type) and issubclass(cls, Engine)):
            yield f"engine is not a class of {Engine.__module__}.Engine; derive it from that"
        elif missing := cls.missing():
            yield f"engine {missing}"
        else:
            yield from cls.lacks(self, space)
            with suppress(TypeError, ValueError):  # the check of components says it
                yield from build_engine(self.engine).flaws(self, space)


def with_objectives_alone(raw: Any) -> SearchConfig | None:
    """The objectives alone of a search that was refused; None if they cannot be read."""
    objectives = raw.get("objectives", {}) if isinstance(raw, dict) else None
    if not isinstance(objectives, dict) or raw.get("function") is not None:
        return None
    with suppress(ValueError):
        return SearchConfig(objectives=objectives)
    return None
