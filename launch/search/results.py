"""Write and print the results of a study: a table of its trials, the best recipe, and the importance of each key."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from ...trainer.checkpoint.layout import RECIPE
from ...trainer.run_report.study import TRIALS as TABLE
from ..listing import show_table
from .run_search import brief
from .study_attributes import END, FOLDER, OWN, REASON, SECONDS, START, VALUES
from .study_store import StudyStore
from .trial_process import INTERRUPTED

if TYPE_CHECKING:
    from .objective import Objective

BEST = "best.yaml"
FRONT = "front"
EACH_ONCE = "search.sampler._target_=optuna.samplers.BruteForceSampler takes each combination once"
ENOUGH = 4
"""Complete trials from which importance means something."""


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's values by key."""
    return json.loads(trial.user_attrs.get(VALUES, "{}"))


def best_trials(store: StudyStore) -> list[FrozenTrial]:
    """The best trial, or those of the Pareto front; empty if none is complete."""
    complete = [trial for trial in store.trials if trial.state == TrialState.COMPLETE and _finite(trial)]
    if not complete:
        return []
    if store.objective.single:
        return [min(complete, key=lambda trial: (_signed(store.objective, trial), trial.number))]
    return [trial for trial in store.study.best_trials if _finite(trial)]


def importances(store: StudyStore) -> dict[str, float]:
    """Share of each parameter in the spread of the first objective; empty if too few trials are complete."""
    complete = [trial for trial in store.trials if trial.state == TrialState.COMPLETE]
    if len(complete) < ENOUGH or len({trial.values[0] for trial in complete}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            target = None if store.objective.single else (lambda trial: trial.values[0])
            found = get_param_importances(store.study, evaluator=PedAnovaImportanceEvaluator(), target=target)
        except (ValueError, RuntimeError):  # optuna cannot rate the keys of such a study
            return {}
    return {name: share for name, share in found.items() if math.isfinite(share)}


def rows(store: StudyStore) -> list[dict[str, Any]]:
    """One row per trial: number, values, objectives, how it ended."""
    found, left = [], store.interrupted()
    for trial in store.trials:
        attributes = trial.user_attrs
        row = {"trial": trial.number, **dict.fromkeys(store.objective.names)}
        if trial.state == TrialState.COMPLETE:
            row |= dict(zip(store.objective.names, trial.values, strict=True))
        row |= {"values": values_of(trial), "steps": max(trial.intermediate_values, default=None)}
        end = attributes.get(END, INTERRUPTED if trial.number in left else "running")
        row |= {"seconds": round(float(attributes.get(SECONDS, 0.0)), 2), "end": end}
        row |= {"reason": attributes.get(REASON, ""), "folder": attributes.get(FOLDER, "")}
        row |= {"start": attributes[START]} if START in attributes else {}
        found.append({**row, "own": bool(attributes.get(OWN))})
    return found


def write_results(store: StudyStore) -> None:
    """Write the table, the best recipes and the plots into the study's folder."""
    from .study_plots import draw_plots

    folder, found = store.folder, rows(store)
    _write(folder / TABLE, "".join(json.dumps(row) + "\n" for row in found))
    best = best_trials(store)
    if store.objective.single:
        for trial in best:
            _write_recipe(store, trial, folder / BEST, folder / "best")
    elif best:
        (folder / FRONT).mkdir(exist_ok=True)
        for old in (folder / FRONT).glob("*.yaml"):
            old.unlink()
        for trial in best:
            name = trial.user_attrs[FOLDER]
            _write_recipe(store, trial, folder / FRONT / f"{name}.yaml", folder / f"best_{name}")
    draw_plots(store, found, importances(store), best)


def show_results(store: StudyStore) -> None:
    """Print the table, the best trial, what the search has gained, and how much each key mattered."""
    from .study_plots import PLOTS

    found, names = rows(store), store.objective.names
    if not found:
        return
    best = best_trials(store)
    chosen = {trial.number for trial in best}
    keys = list(dict.fromkeys(key for row in found for key in row["values"]))
    header = ("trial", *names, *keys, "seconds", "end")
    show_table(header, [_cells(row, names, keys, row["trial"] in chosen) for row in found])
    for line in (*_found(store, best), *_importance(store), *_further(store)):
        print(line)
    there = [name for name in (TABLE, f"{PLOTS}/") if (store.folder / name).exists()]
    print(f"everything is in {store.folder}: {', '.join(there)}")


def _found(store: StudyStore, best: Sequence[FrozenTrial]) -> list[str]:
    """Sentences on the best trials and on the result of the recipe's own values."""
    if not best:
        return ["no trial has ended with a value"]
    objective = store.objective
    if not objective.single:
        front = ", ".join(str(trial.number) for trial in best)
        head = "the Pareto front" if store.complete else "the Pareto front so far"
        return [f"{head}: trials {front}; recipes of each: {store.folder / FRONT}"]
    trial, (name, mode) = best[0], next(iter(objective.modes.items()))
    shown = ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                      for key, value in values_of(trial).items())  # fmt: skip
    head = "best" if store.complete else "best so far"
    lines = [f"{head}: trial {trial.number} with {name} {trial.values[0]:.4f} ({mode} is better): {shown}"]
    if start := trial.user_attrs.get(START):
        run = store.folder / trial.user_attrs[FOLDER]
        lines.append(f"it went on from {start} with these values, so its weights are those of its run: {run}")
    own = next((one for one in store.trials if one.user_attrs.get(OWN)), None)
    if own is not None and own.number == trial.number:
        lines.append("no other values have beaten the recipe's own")
    elif own is not None and own.state == TrialState.COMPLETE:
        lines.append(f"the recipe's own values (trial {own.number}) give {own.values[0]:.4f}")
    return [*lines, f"train it: trireme train {store.folder / BEST}"]


def _importance(store: StudyStore) -> list[str]:
    shares = importances(store)
    shown = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())
    return [f"what mattered: {shown}"] if shown else []


def _further(store: StudyStore) -> list[str]:
    """Sentences on trials that are still to run, and on values that were tried more than once."""
    trials, lines = store.trials, []
    if not store.complete:
        ended = sum(trial.state.is_finished() for trial in trials)
        lines.append(f"{ended} of {store.search.trials} trials have ended; the same command goes on with the study")
    elif store.all_tried:
        lines.append(f"all {store.combinations} combinations of the space were tried")
    if repeated := sum(VALUES in trial.user_attrs for trial in trials) - store.points:
        lines.append(f"{repeated} trial{'s' if repeated > 1 else ''} had values that were tried before; {EACH_ONCE}")
    return lines


def _cells(row: dict[str, Any], names: Sequence[str], keys: Sequence[str], best: bool) -> list[str]:
    mark = " *" if best else ""
    values = ["" if row[name] is None else f"{row[name]:.4f}{mark}" for name in names]
    given = [_cell(row["values"].get(key, "")) for key in keys]
    reason = brief(row["reason"])
    own = "the recipe's own" if row["own"] else ""
    end = "; ".join(part for part in (row["end"] + (f": {reason}" if reason else ""), own) if part)
    return [str(row["trial"]), *values, *given, f"{row['seconds']:.1f}", end]


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_recipe(store: StudyStore, trial: FrozenTrial, path: Path, run_dir: Path) -> None:
    """Write the resolved recipe of a trial, with a run folder of its own."""
    source = store.folder / trial.user_attrs[FOLDER] / RECIPE
    recipe = yaml.safe_load(source.read_text())
    recipe["run"] |= {"dir": str(run_dir), "group": None, "trial": None}
    values = ", ".join(f"{name} {value:.6g}" for name, value in zip(store.objective.names, trial.values, strict=True))
    head = f"# Trial {trial.number} of the study {store.name}: {values}.\n# trireme train {path}\n"
    _write(path, head + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")  # of this worker
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(trial: FrozenTrial) -> bool:
    return all(map(math.isfinite, trial.values))


def _signed(objective: Objective, trial: FrozenTrial) -> float:
    return trial.values[0] if objective.directions[0] == "minimize" else -trial.values[0]
