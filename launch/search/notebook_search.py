"""Run a search from a notebook cell or a script, and use its results: a table of trials, the best values, the best run.

::

    import trireme
    found = trireme.search(
        "pretrain/persimmon_stdlib", {"search": "optuna", "search.trials": 20},
        space={"optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True}},
    )
    found.trials            # a pandas table
    found.best_values       # {"optimizer.lr": 0.0021}
    found.best.metrics      # the run of the best trial, as of trireme.train
    found.train_best()      # trains its recipe in a folder of its own

Trials run in processes of their own, so a class that is defined in a cell is not known to them: write it into a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..notebook import Run, as_overrides, refuse_arguments, train
from .require_optuna import refuse_without_optuna

if TYPE_CHECKING:
    import pandas


@dataclass
class Found:
    """The results of a search: its trials, the best of them, and plots."""

    dir: Path
    """Folder of the study, with one run folder for each trial."""

    @cached_property
    def trials(self) -> pandas.DataFrame:
        """One row per trial: number, objectives, values by key, seconds, how it ended."""
        import pandas

        rows = [{**row, **row["values"]} for row in self._rows]
        return pandas.DataFrame(rows).drop(columns=["values", "folder"], errors="ignore")

    @property
    def best_values(self) -> dict[str, Any]:
        """Values of the best trial by key."""
        return self._best["values"]

    @property
    def best(self) -> Run:
        """The run of the best trial."""
        return Run(self.dir / self._best["folder"])

    @property
    def plots(self) -> dict[str, Path]:
        """SVG files by name: history, slice, parallel_coordinate, importance."""
        from .study_plots import PLOTS

        return {file.stem: file for file in sorted((self.dir / PLOTS).glob("*.svg"))}

    def train_best(self, overrides: Mapping[str, Any] | Sequence[str] | None = (), **options: Any) -> Run:
        """Train the recipe of the best trial; ``overrides`` and ``options`` are those of ``trireme.train``."""
        return train(str(self._best_recipe), overrides, **options)

    def _repr_html_(self) -> str:
        texts = [file.read_text(encoding="utf-8") for file in self.plots.values()]
        return "".join([self.trials.to_html(index=False), *(text[text.index("<svg") :] for text in texts)])

    @property
    def _best_recipe(self) -> Path:
        from .results import BEST

        if not (self.dir / BEST).is_file():
            fix = "look at the trials; of several objectives train a recipe in front/"
            raise UserError(Problem("search", "has no single best trial", fix, str(self.dir)))
        return self.dir / BEST

    @property
    def _best(self) -> dict[str, Any]:
        number = int(self._best_recipe.read_text(encoding="utf-8").partition("Trial ")[2].split()[0])
        return next(row for row in self._rows if row["trial"] == number)

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        from .results import TABLE

        return [json.loads(line) for line in (self.dir / TABLE).read_text(encoding="utf-8").splitlines()]


def search(
    recipe: str,
    overrides: Mapping[str, Any] | Sequence[str] | None = (),
    *,
    space: Mapping[str, Any] | Callable[[Any], dict[str, Any]] | None = None,
    objective: Callable[[dict[str, Any]], Any] | None = None,
    nproc: int | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    recipe_dirs: Sequence[str] = (),
) -> Found:
    """Run a search; the same call continues a study.

    Args:
        recipe: name (see ``trireme recipes``) or path of a .yaml file.
        overrides: values by dotted key, or ``key=value`` strings as on the command line.
        space: ranges and choices by key, or a function that takes a trial of optuna and returns values by key; None
            takes ``search.space``.
        objective: function of a run's last metrics; None takes ``search.function`` or the metrics themselves.
        nproc: processes of each trial; None takes what the plan needs.
        jobs: trials at once; None takes ``search.jobs``.
        fresh: move an existing study aside and start over.
        recipe_dirs: folders with recipes of your own.

    Raises:
        UserError: everything that is wrong, before the first trial.
        RanksFailed: too many trials in a row have failed.
    """
    refuse_without_optuna()
    from ..error_report import LeftEarly
    from ..start_process import prepare_process
    from .check_search import prepare
    from .start_search import run

    refuse_arguments(nproc, "auto", recipe_dirs)
    prepare_process()
    prepared = prepare(recipe, as_overrides(overrides), recipe_dirs, nproc, space, objective, fresh)
    with suppress(LeftEarly):  # the stop button: trials have saved, and the same call goes on
        run(prepared, jobs, fresh)
    return Found(prepared.folder)
