"""Read the folder of a *study* (a hyperparameter search), and make its section in a run report: the table of its
trials, and plots.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..regular_files import read_regular
from .markup import Html, details, duration, number, section, table, text
from .run_files import is_run

PLOTS, EARLIER, TRIALS, COMMAND = "plots", "pictures", "trials.jsonl", "search.json"
"""Names in the folder of a study: its plots as SVG (``plots``, or ``pictures`` in folders of earlier versions), one
line of JSON for each trial (written when a worker has ended), and the command that started the search."""
TRIAL = re.compile(r"trial_\d+")
"""Name of the run folder of a trial."""
KNOWN = ("trial", "values", "steps", "seconds", "end", "reason", "folder", "own", "start")
"""Fields of a trial's line that are not its objectives."""
COLOURS = {
    "done": "done", "running": "running", "pruned": "stopped", "failed": "failed", "killed": "killed",
    "interrupted": "left",
}  # fmt: skip
LARGEST = 2**22
"""Most bytes of a plot, and of the table of trials."""
SHOWN = 20
"""Trials that are shown at once; more are folded up."""


@dataclass
class Study:
    """The contents of a study's folder, without the run folders of its trials."""

    name: str
    trials: Sequence[Mapping[str, Any]]
    """Rows of the study's table, one per trial; empty before a worker has ended."""
    plots: Mapping[str, str]
    """Title -> SVG."""


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study, which has a recipe too, but no metrics of its own."""
    return any((folder / name).is_file() for name in (TRIALS, COMMAND))


def trial_folders(folder: Path) -> list[Path]:
    """Run folders of a study's trials, without that of the best recipe, which is trained again beside them."""
    return sorted(one for one in folder.iterdir() if TRIAL.fullmatch(one.name) and is_run(one))


def read_study(folder: Path) -> Study:
    """Read the table and the plots of a study."""
    return Study(folder.resolve().name, read_trials(folder), read_plots(folder))


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """The trials of a study; empty if it has no table of them."""
    found = []
    for line in _read(folder / TRIALS).splitlines():
        try:
            trial = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [trial] if isinstance(trial, dict) else []
    return found


def read_plots(folder: Path) -> dict[str, str]:
    """Title -> SVG of the plots of a study."""
    files = (path for name in (EARLIER, PLOTS) for path in sorted((folder / name).glob("*.svg")))
    return {path.stem.replace("_", " "): _read(path) for path in files}


def studies(found: Sequence[Study]) -> Iterator[str]:
    """The tables and plots of studies, under their names if there are several."""
    for study in found:
        of = f" of {study.name}" if len(found) > 1 else ""
        yield _trials(study.trials, f"Trials{of}")
        images = [_plot(title, svg) for title, svg in study.plots.items()]
        yield section("plots", f"Plots{of or ' of the study'}", images)


def _trials(found: Sequence[Mapping[str, Any]], title: str) -> str:
    """Trials with their objectives and values, and how each ended."""
    objectives = _names(found, lambda trial: [name for name in trial if name not in KNOWN])
    values = _names(found, lambda trial: trial["values"] if isinstance(trial.get("values"), dict) else ())
    rows = []
    for trial in found:
        end, given = str(trial.get("end") or ""), trial.get("values")
        given = given if isinstance(given, dict) else {}
        chip = Html(f'<span class="chip {COLOURS.get(end, "")}">{text(end)}</span>')
        told = [*(_shown(trial.get(name)) for name in objectives), *(_shown(given.get(name)) for name in values)]
        seconds = trial.get("seconds")
        took = duration(seconds) if isinstance(seconds, int | float) else ""
        rows.append((_shown(trial.get("trial")), chip, *told, took, str(trial.get("reason") or "")[:200]))
    header = ("trial", "end", *objectives, *values, "time", "reason")
    left = (1, len(header) - 1)
    parts = [table(header, rows[:SHOWN], left, "trials")]
    if len(rows) > SHOWN:
        parts.append(details(f"{len(rows) - SHOWN} more", table(header, rows[SHOWN:], left, "more trials")))
    return section("trials", title, parts)


def _plot(title: str, svg: str) -> str:
    """A plot as an HTML image, in which scripts do not run and whose styles do not change the page."""
    data = base64.b64encode(svg.encode("utf-8", "replace")).decode()
    image = f'<img alt="{text(title)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure><figcaption>{text(title)}</figcaption>{image}</figure>"


def _names(found: Sequence[Mapping[str, Any]], of: Any) -> list[str]:
    return list(dict.fromkeys(str(name) for trial in found for name in of(trial)))


def _shown(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value)
    return "" if value is None else str(value)[:80]


def _read(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8", "replace") if path.stat().st_size <= LARGEST else ""
    except OSError:
        return ""
