"""Curve callback: plot loss, learning rate, gradient norm and throughput of a run to ``curve.png`` in the run folder,
and update the plot during the run.

After a resume, earlier values are read from ``metrics.jsonl``, so the plot always shows the whole run.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .callback import Callback, Metrics
from .line_text import unit_of
from .metrics_file import FILE_NAME, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
INK, GREY, BLUE, ORANGE, RED = "#1f2933", "#7b8794", "#2b6cb0", "#dd6b20", "#c53030"
SMOOTHED_FROM = 20
"""Number of training lines from which a smoothed curve is drawn too."""


class Curve(Callback):
    """Draws the curve after evaluations and at the end, on the main rank.

    Args:
        every_seconds: shortest time in seconds between two plots during the run; drawing takes about half a second.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        if every_seconds < 0:
            raise ValueError(f"every_seconds={every_seconds} is negative; use 0 or more seconds")
        self.every_seconds = every_seconds
        self._lines: list[Metrics] = []
        self._on = False
        self._drawn_at = float("-inf")

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        self._on = trainer.mesh.is_main
        if self._on and importlib.util.find_spec("matplotlib") is None:
            log.warning("no curve.png: pip install matplotlib to get it")
            self._on = False
        file = trainer.run_dir / FILE_NAME
        if self._on and state.step and file.exists():
            self._lines = read_metrics(file, state.step)

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        if not self._on:
            return
        self._lines.append(dict(metrics))
        evaluated = any(name.startswith("eval_") for name in metrics)
        if evaluated and time.monotonic() - self._drawn_at >= self.every_seconds:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._on:
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        try:
            title = curve_title(trainer.run_dir.name, trainer.recipe.model.spec.title, trainer.recipe.plan.name)
            path, lines = trainer.run_dir / "curve.png", self._lines
            draw_curve(lines, path, title, trainer.reference_lines, trainer.task.loss_unit)
        except OSError as error:
            log.warning("curve.png cannot be written (%s); no more curves in this run", error.strerror)
            self._on = False
        self._drawn_at = time.monotonic()


def curve_title(run: str, model: str, plan: str) -> str:
    """The heading of a plot: run, model and plan."""
    return f"{run}: {model}, plan {plan}"


def draw_curve(
    lines: list[Metrics],
    path: Path,
    title: str,
    references: dict[str, float] | None = None,
    loss_unit: str = "nats per token",
) -> None:
    """Draw ``curve_figure`` into a PNG that replaces ``path`` atomically, so that a viewer never reads half a plot.

    Raises:
        OSError: the plot cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        curve_figure(lines, title, references, loss_unit).savefig(temporary, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def curve_figure(
    lines: list[Metrics], title: str, references: dict[str, float] | None = None, loss_unit: str = "nats per token"
) -> Figure:
    """Loss, learning rate, gradient norm and throughput against the step.

    Args:
        lines: training and evaluation lines as in ``metrics.jsonl``.
        title: heading, such as the name of the run.
        references: losses to compare with, by name; drawn as dashed horizontal lines.
        loss_unit: what the loss counts, per what.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, hspace=0.04)
    figure = Figure(figsize=(9, 6.2), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.015, ha="left", fontsize=14, fontweight="bold", color=INK, parse_math=False)
    axes = figure.subplot_mosaic([["loss"] * 3, ["lr", "norm", "speed"]], height_ratios=[3, 1])
    _draw_loss(axes["loss"], lines, references or {}, loss_unit)
    _draw_lr(axes["lr"], *_series(lines, "lr"))
    _draw_norm(axes["norm"], *_series(lines, "grad_norm"))
    counted = next(filter(None, map(unit_of, lines)), "tokens")
    _draw_speed(axes["speed"], counted, *_series(lines, f"{counted}_per_second"))
    return figure


def _draw_loss(axes: Axes, lines: list[Metrics], references: dict[str, float], loss_unit: str) -> None:
    steps, losses = _series(lines, "loss")
    smooth = len(losses) >= SMOOTHED_FROM
    axes.plot(steps, losses, color=BLUE, linewidth=0.8 if smooth else 1.6, alpha=0.3 if smooth else 1.0)
    if smooth:
        axes.plot(steps, _smoothed(losses, max(len(losses) // 40, 2)), color=BLUE, linewidth=1.8)
    ends = [(losses[-1], f"train {losses[-1]:.3f}", BLUE)] if losses else []
    ends += _draw_evaluations(axes, *_series(lines, "eval_loss"))
    for name, value in references.items():
        axes.axhline(value, color=GREY, linewidth=1.2, linestyle=(0, (5, 4)))
        text = f"{name.replace('_', ' ')} {value:.3f}"
        axes.annotate(text, (0.995, value), xycoords=("axes fraction", "data"), xytext=(0, 4), ha="right",
                      textcoords="offset points", color=GREY, fontsize=9.5, parse_math=False)  # fmt: skip
    _tidy(axes, f"loss ({loss_unit})")
    _end_on_gridlines(axes)
    _mark_not_finite(axes, lines)
    _label_ends(axes, ends)


def _draw_evaluations(axes: Axes, steps: list[int], losses: list[float]) -> list[tuple[float, str, str]]:
    """Draw held-out losses and mark the best one; returns the label of the last."""
    axes.plot(steps, losses, color=ORANGE, linewidth=1.6, marker="o", markersize=5, markeredgecolor="white")
    if not losses:
        return []
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot([steps[best]], [losses[best]], color=ORANGE, marker="*", markersize=13, markeredgecolor="white")
    if best < len(losses) - 1:
        text = f"best {losses[best]:.3f} at step {steps[best]}"
        axes.annotate(text, (steps[best], losses[best]), xytext=(0, 10), textcoords="offset points", ha="center",
                      color=ORANGE, fontsize=9)  # fmt: skip
    return [(losses[-1], f"held-out {losses[-1]:.3f}", ORANGE)]


def _end_on_gridlines(axes: Axes) -> None:
    """Let the axis of the loss begin and end at a gridline, so that no curve lies above the last one."""
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_locator().tick_values(low, high)
    axes.set_ylim(max((tick for tick in ticks if tick <= low), default=low),
                  min((tick for tick in ticks if tick >= high), default=high))  # fmt: skip


def _mark_not_finite(axes: Axes, lines: list[Metrics]) -> None:
    """Mark the first step whose loss is not finite, since the curve ends there as if the run had."""
    first = next((line["step"] for line in lines if "loss" in line and not _is_finite(line["loss"])), None)
    if first is not None:
        axes.axvline(first, color=RED, linewidth=1.2)
        axes.annotate(f"not finite from step {first} ", (first, 0.97), xycoords=("data", "axes fraction"), ha="right",
                      va="top", color=RED, fontsize=9.5)  # fmt: skip


def _draw_lr(axes: Axes, steps: list[int], rates: list[float]) -> None:
    largest = max(rates, default=0.0)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    axes.plot(steps, [rate / 10.0**exponent for rate in rates], color=GREY, linewidth=1.3)
    _tidy(axes, rf"learning rate, $\times 10^{{{exponent}}}$")
    axes.set_ylim(bottom=0)


def _draw_norm(axes: Axes, steps: list[int], norms: list[float]) -> None:
    axes.plot(steps, norms, color=GREY, linewidth=1.0)
    _tidy(axes, "gradient norm")
    if norms and min(norms) > 0 and max(norms) > 30 * min(norms):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _draw_speed(axes: Axes, counted: str, steps: list[int], rates: list[float]) -> None:
    """
    Args:
        counted: what the rates count, such as tokens.
    """
    thousands = max(rates, default=0.0) >= 1e4
    unit, name = 1e3 if thousands else 1.0, f"{'thousand ' if thousands else ''}{counted} per second"
    axes.plot(steps, [rate / unit for rate in rates], color=GREY, linewidth=1.0)
    _tidy(axes, name)
    axes.set_ylim(bottom=0)


def _label_ends(axes: Axes, labels: list[tuple[float, str, str]]) -> None:
    """Write each line's name and last value right of the axes, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, at = (high - low) * 0.055, -math.inf
    for value, text, color in sorted(item for item in labels if math.isfinite(item[0])):
        at = max(value, at + gap)
        axes.annotate(text, (1.015, at), xycoords=("axes fraction", "data"), color=color, fontsize=9.5, va="center",
                      fontweight="bold", annotation_clip=False)  # fmt: skip


def _tidy(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(label, loc="left", fontsize=9, color=GREY, pad=6)
    axes.set_xlabel("step", fontsize=8.5, color=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#cbd2d9")
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axes.tick_params(colors=GREY, labelsize=8, length=0)
    axes.margins(x=0.01)


def _series(lines: list[Metrics], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of one metric."""
    found = [(line["step"], float(line[key])) for line in lines if _is_finite(line.get(key))]
    return [step for step, _ in found], [value for _, value in found]


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(float(value))


def _smoothed(values: list[float], reach: int) -> list[float]:
    """Mean over ``reach`` values to either side, fewer near the ends; centred, so that a fall shows at its step."""
    sums = [0.0, *accumulate(values)]
    reaches = [min(reach, at, len(values) - 1 - at) for at in range(len(values))]
    return [(sums[at + r + 1] - sums[at - r]) / (2 * r + 1) for at, r in enumerate(reaches)]
