"""Make parts of a run report: the state of a run and its most important numbers, the table that compares several runs,
and the tables of a run's evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..callbacks.line_text import unit_of
from .curves import is_evaluation
from .markup import Html, bar, details, duration, number, section, table, text
from .run_files import RunFiles

STATES = {
    "running": "running",
    "done": "done",
    "stopped": "stopped early",
    "left": "left, to be resumed",
    "diverged": "diverged",
    "failed": "failed",
    "killed": "ended without a message",
}
HELD_OUT = "held out"
MOST_ROWS = 200
"""Evaluations of a set that are listed."""


def chip(run: RunFiles) -> Html:
    """The state of a run, as a coloured word."""
    return Html(f'<span class="chip {run.state}">{text(STATES.get(run.state, "state unknown"))}</span>')


def tiles(run: RunFiles) -> str:
    """The most important numbers of one run."""
    found = list(_tiles(run))
    shown = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}{extra}</dd></div>" for name, value, extra in found)
    return f'<dl class="tiles">{shown}</dl>' if found else ""


def _tiles(run: RunFiles) -> Iterator[tuple[str, str, str]]:
    most = steps_of(run)
    share = bar(run.step / most) if most else ""
    yield (
        "step",
        f"{run.step:,}" + (f" of {most:,}" if most else ""),
        f'<span class="track">{share}</span>' if share else "",
    )
    for name, title in (("loss", "loss"), ("eval_loss", "held-out loss")):
        if (value := run.last(name)) is not None:
            best = _best(run, name) if name == "eval_loss" else None
            said = f"<small>best {text(number(best[1]))} at step {best[0]:,}</small>" if best else ""
            yield title, number(value), said
    unit = next(filter(None, map(unit_of, run.lines)), "")
    if unit and (rate := run.last(f"{unit}_per_second")) is not None:
        yield f"{unit} per second", f"{rate:,.0f}" if rate >= 100 else number(rate), ""
    if unit and (count := run.last(unit)) is not None:
        yield unit, f"{count:,.0f}", ""
    if (memory := run.last("memory_mib")) is not None:
        yield "memory", f"{memory / 1024:.2f} GiB" if memory >= 1024 else f"{memory:.0f} MiB", ""
    if (seconds := run.summary.get("seconds")) and isinstance(seconds, int | float):
        yield "time of the last start", duration(seconds), ""


def steps_of(run: RunFiles) -> int | None:
    """Steps of the whole run, if they are known."""
    started = [line.get("max_steps") for line in run.noted("started")]
    for value in (
        started[-1] if started else None,
        run.summary.get("max_steps"),
        recipe_value(run, "trainer.max_steps"),
    ):
        if type(value) is int and value > 0:
            return value
    return None


def recipe_value(run: RunFiles, key: str) -> Any:
    """A value of the recipe by its dotted key; None if there is none."""
    found: Any = run.recipe
    for name in key.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def runs_table(runs: Sequence[RunFiles]) -> str:
    """All runs of the page with their results, the best held-out loss marked."""
    losses = [run.last("eval_loss") for run in runs]
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    rows = []
    for place, (run, loss) in enumerate(zip(runs, losses, strict=True)):
        unit = next(filter(None, map(unit_of, run.lines)), "")
        mark = Html(f"<b>{text(number(loss))}</b>") if finite and loss == min(finite) else number(loss)
        rate = run.last(f"{unit}_per_second")
        started = run.noted("started")
        ranks = started[-1].get("ranks") if started else run.summary.get("ranks")
        swatch = Html(f'<span class="swatch" data-run="{place}"></span> {text(run.name)}')
        rows.append(
            (
                *(swatch, chip(run), recipe_value(run, "plan.name") or "", ranks or "", f"{run.step:,}"),
                *(number(run.last("loss")), mark, "" if rate is None else f"{rate:,.0f} {unit}/s"),
            )
        )
    header = ("run", "state", "plan", "ranks", "step", "loss", "held-out loss", "throughput")
    return section("runs", "Runs", [table(header, rows, (0, 1, 2), "runs")])


def evaluations(run: RunFiles) -> str:
    """Metrics of the last evaluation, a row for each set, and all earlier ones folded up."""
    lines = [line for line in run.lines if is_evaluation(line)]
    if not lines:
        return ""
    sets = _sets(run)
    by_set: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(name for line in lines for name in line if name.startswith(("eval_", "test_"))):
        where, metric = _split(name, sets)
        by_set.setdefault(where, {})[metric] = name
    metrics = list(dict.fromkeys(metric for found in by_set.values() for metric in found))
    rows = [
        (where, *(number(run.last(found[metric])) if metric in found else "" for metric in metrics))
        for where, found in by_set.items()
    ]
    parts = [table(("set", *metrics), rows, label="metrics of the last evaluation by set")]
    for where, found in by_set.items():
        rows = [(f"{line['step']:,}", *(number(line.get(key)) for key in found.values())) for line in lines]
        listed = table(("step", *found), rows[-MOST_ROWS:], (), f"evaluations of {where}")
        parts.append(details(f"{where}: {len(lines)} evaluation{'s' if len(lines) > 1 else ''}", listed))
    return section("evaluations", "Evaluations", parts)


def _sets(run: RunFiles) -> list[str]:
    further = recipe_value(run, "data.eval_sets")
    names = [str(name) for name in further] if isinstance(further, dict) else []
    return sorted(names, key=len, reverse=True)  # a name may begin with another


def _split(name: str, sets: Sequence[str]) -> tuple[str, str]:
    """Set and metric of a name such as ``eval_loss``, ``eval_news_loss``, ``eval_loss/wiki`` or ``test_loss``."""
    plain, _, source = name.partition("/")
    if plain.startswith("test_"):
        where, metric = "test", plain.removeprefix("test_")
    else:
        metric = plain.removeprefix("eval_")
        where = next((one for one in sets if metric.startswith(f"{one}_")), HELD_OUT)
        metric = metric if where == HELD_OUT else metric.removeprefix(f"{where}_")
    return (f"{where}, {source}" if source else where), metric


def _best(run: RunFiles, name: str) -> tuple[int, float] | None:
    found = [(line["step"], line[name]) for line in run.lines if name in line and math.isfinite(line[name])]
    best = min(found, key=lambda one: one[1], default=None)
    return None if best is None or best == found[-1] else best
