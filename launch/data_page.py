"""Write the report of ``trireme data`` as one self-contained HTML page, with images and audio embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..trainer.data.report.format_data_report import heading, labels_line, share, spread_cells
from ..trainer.data.report.view_html import shown_text, stored_view, view_html

if TYPE_CHECKING:
    from ..trainer.data.report.set_facts import SetFacts
    from ..trainer.data_report import DataReport, ShownSample

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --paper: #fbfaf7; --line: #d8d5cc; --dim: #77797f; --bar: #2f7f93;
  --learnt: #0b6b3a; --hidden: #9a2f86; --warn: #a04a00; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e3da; --paper: #14181f; --line: #323945; --dim: #8f95a1;
  --bar: #4fb0c6; --learnt: #6fd69a; --hidden: #ea8fd6; --warn: #f0a860; --card: #1b212b; } }
body { margin: 2rem auto; max-width: 62rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } h3 { font-size: 1rem; margin: 0 0 .5rem; }
section, article { border: 1px solid var(--line); border-radius: 8px; background: var(--card); padding: 1rem;
  margin: 1rem 0; overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .9rem .15rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--dim); font-weight: 500; } th:first-child, td:first-child, td:last-child { text-align: left; }
.bar { display: inline-block; height: .7rem; border-radius: 2px; background: var(--bar); }
.dim, code { color: var(--dim); } .warn, .note { color: var(--warn); }
code { font-size: .85rem; overflow-wrap: anywhere; }
.sizes span { margin-right: 1.5rem; } .sizes b { font-variant-numeric: tabular-nums; }
dt { color: var(--bar); margin-top: .6rem; } dd { margin: 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 24rem; overflow-y: auto; margin: .2rem 0;
  font: 14px/1.5 ui-monospace, monospace; }
.learnt { color: var(--learnt); font-weight: 600; } .ignored { opacity: .6; }
.padding { opacity: .45; font-style: italic; }
.hidden { color: var(--hidden); } img { image-rendering: pixelated; max-width: 100%; display: block; }
.wave { display: block; width: 100%; max-width: 40rem; height: 4rem; } path { fill: var(--bar); }
"""
LEGEND = """<p class="dim">In texts: <span class="learnt">tokens that the loss counts</span>,
<span class="hidden">[hidden tokens to predict]</span>, <span class="ignored">tokens without a label</span>.</p>"""


def write_page(report: DataReport, file: Path, title: str) -> None:
    """Write the page; an existing file is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(_page(report, title)), encoding="utf-8")
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise UserError(Problem("--html", why, "name a file in a folder that can be written", str(file))) from None


def _page(report: DataReport, title: str) -> Iterator[str]:
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{shown_text(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{STYLE}</style></head><body><h1>{shown_text(title)}</h1>"
    about = " &nbsp; ".join(f"{shown_text(name)}: {shown_text(value)}" for name, value in report.about.items())
    yield f'<p class="dim">{about}</p>'
    for facts in report.sets:
        yield from _set(facts)
    if report.samples:
        yield f"<h2>Samples of {shown_text(report.of)}, as the collator gives them to the model</h2>"
        yield LEGEND
    for sample in report.samples:
        yield from _sample(sample, report.of)
    yield "</body></html>\n"


def _set(facts: SetFacts) -> Iterator[str]:
    yield f'<section><h3>{shown_text(facts.name)}</h3><p class="sizes">'
    for what, count in facts.sizes.items():
        yield f"<span>{shown_text(what)} <b>{'unknown' if count is None else f'{count:,}'}</b></span>"
    yield f"</p><code>{shown_text(facts.source)}</code>"
    if facts.parts:
        yield _bars(
            ("source", "samples", "share"), [(part.name, part.samples, part.share, True) for part in facts.parts]
        )
    if facts.spreads:
        rows = "".join(_row(spread_cells(spread)) for spread in facts.spreads)
        yield f"<table>{_row(('', 'least', 'median', '95 % below', 'most', ''), 'th')}{rows}</table>"
    if facts.labels:
        total = max(sum(label.count for label in facts.labels), 1)
        rows = [(label.name, label.count, label.count / total, label.known) for label in facts.labels]
        yield _bars(("label", "count", "share"), rows)
        yield "".join(f"<p>{shown_text(line)}</p>" for line in labels_line(facts.labels, len(facts.labels)))
    yield "".join(f'<p class="note">{shown_text(note)}</p>' for note in facts.notes) + "</section>"


def _bars(header: Sequence[str], rows: Sequence[tuple[str, int | None, float, bool]]) -> str:
    longest, lines = max((row[2] for row in rows), default=0.0) or 1.0, []
    for name, count, part, known in rows:
        named = shown_text(name) if known else f'<span class="warn">{shown_text(name)}</span>'
        shown = "unknown" if count is None else f"{count:,}"
        bar = f'<span class="bar" style="width:{part / longest * 20:.2f}rem"></span>'
        lines.append(f"<tr><td>{named}</td><td>{shown}</td><td>{share(part)}</td><td>{bar}</td></tr>")
    return f"<table>{_row((*header, ''), 'th')}{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{shown_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _sample(sample: ShownSample, of: str) -> Iterator[str]:
    yield f"<article><h3>{shown_text(heading(sample, of))}</h3><dl>"
    for name, view in sample.views.items():
        yield f"<dt>{shown_text(name)}</dt><dd>{view_html(stored_view(view))}</dd>"
    shapes = " &nbsp; ".join(f"{shown_text(name)} {shown_text(shape)}" for name, shape in sample.shapes.items())
    yield f"</dl><code>{shapes}</code></article>"
