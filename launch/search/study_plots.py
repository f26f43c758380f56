"""Plots of a study as SVG files: history, slices, parallel coordinates, parameter importance, Pareto front.

A plot that would be empty, such as the Pareto front of a single objective, is not drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...trainer.callbacks.curve import BLUE, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna.trial import FrozenTrial

    from .study_store import StudyStore

PLOTS = "plots"
"""Name of the folder with the plots, in that of the study."""
PRUNED_COLOUR = "#cbd2d9"
Row = Mapping[str, Any]


def draw_plots(
    store: StudyStore, rows: Sequence[Row], importances: Mapping[str, float], best: Sequence[FrozenTrial]
) -> None:
    """Draw all plots into the study's folder."""
    names = store.objective.names
    chosen = [row for row in rows if row["trial"] in {trial.number for trial in best}]
    done = [row for row in rows if all(isinstance(row[name], float) and math.isfinite(row[name]) for name in names)]
    if not done:
        return
    drawn = {
        "history": lambda: _history(store, rows, done),
        "slice": lambda: _slices(done, names[0], chosen),
        "parallel_coordinate": lambda: _parallel(done, names, store.objective.modes[names[0]]),
        "importance": lambda: _importance(importances) if importances else None,
        "pareto_front": lambda: _front(done, chosen, names) if len(names) > 1 else None,
    }
    (store.folder / PLOTS).mkdir(exist_ok=True)
    for name, draw in drawn.items():
        _save(store, name, draw)


def _save(store: StudyStore, name: str, draw: Callable[[], Figure | None]) -> None:
    import matplotlib

    path = store.folder / PLOTS / f"{name}.svg"
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": store.name, "font.family": "sans-serif"}):
        figure = draw()
        if figure is None:
            path.unlink(missing_ok=True)
            return
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        figure.savefig(partial, format="svg", metadata={"Date": None}, bbox_inches="tight")
    partial.replace(path)


def _figure(wide: float, high: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for each in axes:
        each.tick_params(colors=INK, labelsize=8)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _history(store: StudyStore, rows: Sequence[Row], done: Sequence[Row]) -> Figure:
    """Values by trial, and the best so far; trials that were pruned as ticks at the bottom."""
    names, modes = store.objective.names, store.objective.modes
    figure, axes = _figure(6.4, 2.8 * len(names)) if len(names) == 1 else _figure(5 * len(names), 3.2, len(names))
    for axis, name in zip(axes, names, strict=True):
        numbers, values = [row["trial"] for row in done], [row[name] for row in done]
        best, least = [], modes[name] == "min"
        for value in values:
            best.append(value if not best else (min if least else max)(best[-1], value))
        pruned = [row["trial"] for row in rows if row["end"] not in ("done", "running", "interrupted")]
        if pruned:
            axis.plot(
                pruned, [0.02] * len(pruned), "|", color=GREY, transform=axis.get_xaxis_transform(), label="not done"
            )
        axis.plot(numbers, values, "o", color=BLUE, markersize=4, label=name)
        axis.step(numbers, best, where="post", color=ORANGE, linewidth=1.5, label="best so far")
        axis.set_xlabel("trial")
        axis.set_ylabel(name)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _slices(done: Sequence[Row], name: str, chosen: Sequence[Row]) -> Figure | None:
    """The objective against each key, darker for later trials."""
    keys = _keys(done)
    if not keys:
        return None
    figure, axes = _figure(max(3.2 * len(keys), 4.5), 3.0, len(keys), sharey=True)
    for axis, key in zip(axes, keys, strict=True):
        having = [row for row in done if key in row["values"]]
        place = _scale(axis, key, having)
        for marked, those in ((False, having), (True, [row for row in chosen if key in row["values"]])):
            places, heights = [place(row["values"][key]) for row in those], [row[name] for row in those]
            if marked:
                axis.scatter(places, heights, color=ORANGE, edgecolors=INK, linewidths=0.4, s=40)
                continue
            ages = [row["trial"] for row in those]
            lightest = -max(ages, default=0) / 2 - 1
            axis.scatter(places, heights, c=ages, cmap="Blues", vmin=lightest, edgecolors=INK, linewidths=0.4, s=22)
        axis.set_xlabel(key)
    axes[0].set_ylabel(name)
    return figure


def _parallel(done: Sequence[Row], names: Sequence[str], mode: str) -> Figure | None:
    """One line for each trial over all keys and objectives; the better it is, the more orange."""
    keys = _keys(done)
    if not keys:
        return None
    from matplotlib import colormaps

    figure, (axis,) = _figure(1.5 * (len(keys) + len(names)) + 1.5, 3.6)
    columns = [_column(done, lambda row, key=key: row["values"].get(key)) for key in keys]
    columns += [_column(done, lambda row, name=name: row[name]) for name in names]
    ranked = sorted(range(len(done)), key=lambda index: done[index][names[0]], reverse=mode == "min")
    colours = colormaps["YlOrBr"]
    for rank, index in enumerate(ranked):
        places = [(at, heights[index]) for at, (heights, _) in enumerate(columns) if heights[index] is not None]
        colour = colours(0.15 + 0.75 * rank / max(len(ranked) - 1, 1))
        axis.plot(*zip(*places, strict=True), color=colour, linewidth=1.0)
    for at, (_, labels) in enumerate(columns):
        axis.axvline(at, color=GREY, linewidth=0.6)
        for height, label in labels:
            axis.annotate(label, (at, height), xytext=(3, 0), textcoords="offset points", fontsize=7, color=INK)
    axis.set_xticks(range(len(columns)), [*keys, *names])
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def _importance(importances: Mapping[str, float]) -> Figure:
    figure, (axis,) = _figure(6.0, 0.4 * len(importances) + 0.9)
    names = list(importances)[::-1]
    bars = axis.barh(names, [importances[name] for name in names], color=BLUE)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axis.set_xlabel("share of the spread (PED-ANOVA)")
    return figure


def _front(done: Sequence[Row], chosen: Sequence[Row], names: Sequence[str]) -> Figure:
    """Pairs of objectives: all trials, and those that no other beats in all."""
    pairs = [(names[0], other) for other in names[1:]]
    figure, axes = _figure(4.6 * len(pairs), 3.6, len(pairs))
    for axis, (one, other) in zip(axes, pairs, strict=True):
        axis.plot([row[one] for row in done], [row[other] for row in done], "o", color=PRUNED_COLOUR, markersize=5)
        front = sorted((row[one], row[other], row["trial"]) for row in chosen)
        axis.plot([point[0] for point in front], [point[1] for point in front], "o-", color=ORANGE, label="front")
        for x, y, number in front:
            axis.annotate(str(number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axis.set_xlabel(one)
        axis.set_ylabel(other)
        axis.legend(fontsize=8, frameon=False)
    return figure


def _keys(done: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in done for key in row["values"]))


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _logarithmic(values: Sequence[Any]) -> bool:
    """Whether values spread so far that a logarithmic axis shows them better."""
    return _numeric(values) and min(values) > 0 and max(values) / min(values) >= 30


def _scale(axis: Axes, key: str, rows: Sequence[Row]) -> Callable[[Any], Any]:
    """Prepare the axis of a key; returns the place of a value on it."""
    values = [row["values"][key] for row in rows]
    if _numeric(values):
        if _logarithmic(values):
            axis.set_xscale("log")
        return lambda value: value
    texts = sorted({str(value) for value in values})
    axis.set_xticks(range(len(texts)), texts, rotation=20 if len(texts) > 3 else 0)
    axis.set_xlim(-0.5, len(texts) - 0.5)
    return lambda value: texts.index(str(value))


def _column(rows: Sequence[Row], value_of: Callable[[Row], Any]) -> tuple[list[float | None], list[tuple[float, str]]]:
    """Heights from 0 to 1 of each row's value, None where it has none, and labels with their heights."""
    values = [value_of(row) for row in rows]
    there = [value for value in values if value is not None]
    if not _numeric(there):
        texts = sorted({str(value) for value in there})
        step = {text: index / max(len(texts) - 1, 1) for index, text in enumerate(texts)}
        return [None if value is None else step[str(value)] for value in values], [(step[text], text) for text in texts]
    change = math.log if _logarithmic(there) else float
    low, high = change(min(there)), change(max(there))
    heights = [None if value is None else (change(value) - low) / ((high - low) or 1.0) for value in values]
    return heights, [(0.0, f"{min(there):.3g}"), *([(1.0, f"{max(there):.3g}")] if high > low else [])]
