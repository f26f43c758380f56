"""Write the report of one or several runs as one self-contained HTML file, which loads no other files.

Tables and images are plain HTML and SVG. The charts are drawn by a script of our own (``page.js``) from numbers in the
page, so that readers can choose axes, smoothing and scales.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...version import __version__
from .curves import charts, curves
from .history import checkpoints, faults, starts
from .markup import text
from .overview import chip, evaluations, recipe_value, runs_table, tiles
from .recipes_shown import differences, machine, recipe
from .resources import memory, timeline, traffic
from .run_files import RunFiles
from .samples_shown import samples, written
from .study import Study, studies

HERE = Path(__file__).parent
SECTIONS = (evaluations, samples, written, memory, traffic, timeline, checkpoints, starts, faults, recipe, machine)
"""Parts of the report of one run, in their order."""
FEW, SECTIONS_OF_MANY = 12, (evaluations, starts, faults)
"""Runs of a page that shows all parts of each; and the parts of each of more runs."""


@dataclass
class Report:
    """The contents of a report's page."""

    runs: Sequence[RunFiles]
    title: str
    refresh: float | None = None
    """Seconds after which the open page loads itself again; None for a page that will not change."""
    studies: Sequence[Study] = ()
    """Studies that runs are trials of."""


def write_report(report: Report, out: Path) -> None:
    """Write the page; an existing file is replaced in one step, so that a reader never sees half of it.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = out.with_name(f".{out.name}.partial")
    try:
        temporary.write_text(page(report), encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def page(report: Report) -> str:
    """The HTML of a report."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    runs = report.runs
    found = [curves(run, len(runs)) for run in runs]
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(report.title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    yield "script-src 'unsafe-inline'; img-src data:; media-src data:\">"
    yield f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style></head><body>"
    yield from _head(report)
    yield "<main>"
    if len(runs) > 1:
        yield runs_table(runs)
    yield from studies(report.studies)
    yield from _curves(report, found)
    if len(runs) > 1:
        yield differences(runs)
        names = "".join(f'<option value="{place}">{text(run.name)}</option>' for place, run in enumerate(runs))
        yield f'<p class="choice" hidden><label>Details of <select id="run">{names}</select></label></p>'
    for place, run in enumerate(runs):
        content = "".join(part(run) for part in (SECTIONS if len(runs) <= FEW else SECTIONS_OF_MANY))
        heading = f"<h2>{text(run.name)} {chip(run)}</h2>{tiles(run)}" if len(runs) > 1 else ""
        yield f'<div class="run" data-run="{place}">{heading}{content}</div>'
    yield "</main>"
    now = datetime.now().astimezone()
    yield f"<footer>Written by trireme {__version__} at {now:%Y-%m-%d %H:%M:%S %Z}.</footer>"
    yield f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script></body></html>"


def _head(report: Report) -> Iterator[str]:
    yield f"<header><h1>{text(report.title)}</h1>"
    if len(report.runs) == 1:
        run = report.runs[0]
        about = " · ".join(text(one) for one in _about(run))
        yield f"<p>{chip(run)} {about}</p>{tiles(run)}"
    elif report.runs:
        yield f"<p>{len(report.runs)} runs</p>"
    if report.refresh is not None:
        yield '<p class="live" role="status"><span class="dot"></span> this page follows the run</p>'
    yield "</header>"


def _about(run: RunFiles) -> Iterator[str]:
    started = run.noted("started")
    ranks = started[-1].get("ranks") if started else run.summary.get("ranks")
    for value in (recipe_value(run, "model.family"), recipe_value(run, "plan.name")):
        if value:
            yield str(value)
    if ranks:
        yield f"{ranks} rank{'s' if ranks != 1 else ''}"
    yield str(run.folder)


def _curves(report: Report, found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The place of the curves, and the numbers that they are drawn from."""
    listed = charts(found)
    if not listed:
        yield '<section id="curves"><h2>Curves</h2><p>No step has been logged yet.</p></section>'
    else:
        yield '<section id="curves"><h2>Curves</h2><div id="controls"></div><div id="legend"></div>'
        yield '<div id="charts"></div>'
        yield "<noscript><p>The curves need JavaScript; everything else on this page does not.</p></noscript></section>"
    references = [_references(run) for run in report.runs]
    data = {
        "refresh": report.refresh,
        "charts": listed,
        "runs": [
            {"name": run.name, "references": lines, **columns}
            for run, lines, columns in zip(report.runs, references, found, strict=True)
        ],
    }
    dumped = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    yield f'<script type="application/json" id="data">{dumped.replace("<", chr(92) + "u003c")}</script>'


def _references(run: RunFiles) -> dict[str, float]:
    """Losses to compare with, such as the unigram entropy."""
    started = run.noted("started")
    found = started[-1].get("references") if started else None
    given = found.items() if isinstance(found, dict) else ()
    return {str(name): value for name, value in given if isinstance(value, int | float) and abs(value) < 1e300}
