"""Prepare the data of the charts in a run report: columns of numbers, condensed so that the page stays small.

Long runs are condensed: neighbouring steps are put into buckets, and each bucket gives the mean, minimum and maximum,
so that no spike is lost. The time axis is pure training time, without evaluations and saves, so that runs with
interruptions can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from ..callbacks.line_text import unit_of
from .run_files import Line, RunFiles

BUCKETS, IN_ALL, LEAST = 600, 4000, 100
"""Buckets of one run, of all runs of a page together, and of a run among many."""
NO_CURVE = ("step", "epoch", "train_tokens_cut", "samples_per_second", "step_seconds", "skipped", "averaged")
"""Numbers of training lines for which no curve is drawn: axes, and values that other curves show."""
TITLES = {
    "loss": "loss",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "memory_mib": "memory, MiB",
    "mfu": "share of the hardware's peak (MFU)",
}
MOST_CHARTS = 16


def is_evaluation(line: Line) -> bool:
    return any(name.startswith(("eval_", "test_")) for name in line)


def curves(run: RunFiles, runs: int) -> dict[str, Any]:
    """The columns of a run: ``x`` (step, tokens, seconds), ``y`` with ``low`` and ``high``, and ``eval`` with its own
    ``x`` and ``y``; ``bad`` is the first step whose loss is not finite.

    Args:
        runs: number of runs on the page, which share its size.
    """
    training, evaluations = [], []
    for line in run.lines:
        (evaluations if is_evaluation(line) else training).append(line)
    unit = next(filter(None, map(unit_of, training)), "")
    axes = _axes(training, unit)
    most = min(BUCKETS, max(IN_ALL // max(runs, 1), LEAST))
    places = _buckets(len(training), most)
    y, low, high = {}, {}, {}
    for name in _names(training, (*NO_CURVE, unit)):
        columns = [_bucket([line.get(name) for line in training[first:last]]) for first, last in places]
        y[name] = [column[0] for column in columns]
        if len(places) < len(training):
            low[name], high[name] = [column[1] for column in columns], [column[2] for column in columns]
    evaluations = _thinned(evaluations, most)
    at = [_axis_at(training, axes, line["step"]) for line in evaluations]
    return {
        "unit": unit,
        "x": {name: [column[last - 1] for _, last in places] for name, column in axes.items()},
        "y": y,
        "low": low,
        "high": high,
        "eval": {
            "x": {"step": [line["step"] for line in evaluations]}
            | {name: [each[name] for each in at] for name in axes if name != "step"},
            "y": {
                name: [short(line.get(name)) for line in evaluations]
                for name in _names(evaluations, ("step", "averaged"))
            },
        },
        "bad": next((line["step"] for line in training if math.isnan(line.get("loss", 0.0))), None),
    }


def charts(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts of the page, each with a title, the metric of training lines, and that of evaluations."""
    training = _union(one["y"] for one in found)
    evaluated = _union(one["eval"]["y"] for one in found)
    units = list(dict.fromkeys(one["unit"] for one in found if one["unit"]))
    rates = [f"{unit}_per_second" for unit in units]
    first = [name for name in ("loss", "lr", "grad_norm", *rates, "memory_mib", "mfu") if name in training]
    order = [*first, *(name for name in training if name not in first)]
    listed = [_chart(name, f"eval_{name}" if f"eval_{name}" in evaluated else None) for name in order]
    shown = {chart["held_out"] for chart in listed}
    points = {name: max(len(one["eval"]["y"].get(name, ())) for one in found) for name in evaluated}
    listed += [_chart(None, name) for name in evaluated if name not in shown and points[name] > 1]
    return listed[:MOST_CHARTS]


def short(value: Any, digits: int = 5) -> float | int | None:
    """A number with few digits, which is enough for a plot; None for None, and for a number that is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _chart(name: str | None, held_out: str | None) -> dict[str, Any]:
    key = name or held_out or ""
    plain = key.removeprefix("eval_").replace("_per_second", " per second").replace("_", " ")
    plain = TITLES.get(key, plain if name else f"held-out {plain}")
    return {"train": name, "held_out": held_out, "title": plain}


def _axes(lines: Sequence[Line], unit: str) -> dict[str, list[Any]]:
    """Step, tokens (or what else is counted) and seconds of training at each line, as far as they are known."""
    axes: dict[str, list[Any]] = {"step": [line["step"] for line in lines]}
    if unit and all(unit in line for line in lines):
        axes["tokens"] = [line[unit] for line in lines]
    seconds, at, before = [], 0.0, None
    for line in lines:
        at += _took(line, before, unit) or 0.0
        seconds.append(short(at, 6) or 0)
        before = line
    if at > 0:
        axes["seconds"] = seconds
    return axes


def _took(line: Line, before: Line | None, unit: str) -> float | None:
    """Seconds of training since the line before, by the rate of this one."""
    rate = line.get(f"{unit}_per_second")
    if unit in line and rate and math.isfinite(rate):
        return max(line[unit] - (before or {}).get(unit, 0), 0) / rate
    each = line.get("step_seconds")
    return max(line["step"] - (before or {}).get("step", 0), 0) * each if each and math.isfinite(each) else None


def _axis_at(lines: Sequence[Line], axes: dict[str, list[Any]], step: int) -> dict[str, Any]:
    """The values of all axes at the last line up to a step."""
    place = max((number for number, line in enumerate(lines) if line["step"] <= step), default=-1)
    return {name: column[place] if place >= 0 else 0 for name, column in axes.items()}


def _buckets(count: int, most: int) -> list[tuple[int, int]]:
    if count <= most:
        return [(place, place + 1) for place in range(count)]
    edges = [round(place * count / most) for place in range(most + 1)]
    return list(pairwise(edges))


def _bucket(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    """Mean, least and greatest of the finite values."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None, None, None
    return short(math.fsum(finite) / len(finite)), short(min(finite)), short(max(finite))


def _thinned(lines: list[Line], most: int) -> list[Line]:
    """Not more lines than ``most``, evenly chosen, the last one among them."""
    return lines if len(lines) <= most else [lines[last - 1] for _, last in _buckets(len(lines), most)]


def _names(lines: Iterable[Line], without: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(name for line in lines for name in line) if name not in without]


def _union(columns: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for one in columns for name in one))
