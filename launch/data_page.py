"""Write a report of data as one page of HTML that needs nothing else: pictures and sounds are inside it."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import Problem, UserError
from ..trainer.data.report.views import Numbers, Picture, Piece, Role, Sound, Text, Tokens, View
from .data_words import heading, labels_line, number, numbers_text, share, spread_cells
from .visible_text import visible

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
svg { display: block; width: 100%; max-width: 40rem; height: 4rem; } path { fill: var(--bar); }
"""
LEGEND = """<p class="dim">In texts: <span class="learnt">what the loss counts</span>,
<span class="hidden">[what is to be predicted there]</span>, <span class="ignored">what has no label</span>.</p>"""
LEAST_WIDTH = 128
"""Small pictures are shown at least so wide."""


def write_page(report: DataReport, file: str, title: str) -> None:
    """Write the page; an existing file is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        Path(file).write_text("\n".join(_page(report, title)), encoding="utf-8")
    except OSError as error:
        why = f"cannot be written: {error.strerror or error}"
        raise UserError(Problem("--html", why, "name a file in a folder that exists", file)) from None


def _page(report: DataReport, title: str) -> Iterator[str]:
    yield f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1>"
    about = " &nbsp; ".join(f"{_text(name)}: {_text(value)}" for name, value in report.about.items())
    yield f'<p class="dim">{about}</p>'
    for facts in report.sets:
        yield from _set(facts)
    if report.samples:
        yield f"<h2>Samples of {_text(report.of)}, as the collator gives them to the model</h2>"
        yield LEGEND
    for sample in report.samples:
        yield from _sample(sample, report.of)
    yield "</body></html>\n"


def _set(facts: SetFacts) -> Iterator[str]:
    yield f'<section><h3>{_text(facts.name)}</h3><p class="sizes">'
    for what, count in facts.sizes.items():
        yield f"<span>{_text(what)} <b>{'unknown' if count is None else f'{count:,}'}</b></span>"
    yield f"</p><code>{_text(facts.source)}</code>"
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
        yield "".join(f"<p>{_text(line)}</p>" for line in labels_line(facts.labels, len(facts.labels)))
    yield "".join(f'<p class="note">{_text(note)}</p>' for note in facts.notes) + "</section>"


def _bars(header: Sequence[str], rows: Sequence[tuple[str, int | None, float, bool]]) -> str:
    longest, lines = max((row[2] for row in rows), default=0.0) or 1.0, []
    for name, count, part, known in rows:
        named = _text(name) if known else f'<span class="warn">{_text(name)}</span>'
        shown = "unknown" if count is None else f"{count:,}"
        bar = f'<span class="bar" style="width:{part / longest * 20:.2f}rem"></span>'
        lines.append(f"<tr><td>{named}</td><td>{shown}</td><td>{share(part)}</td><td>{bar}</td></tr>")
    return f"<table>{_row((*header, ''), 'th')}{''.join(lines)}</table>"


def _row(cells: Sequence[str], tag: str = "td") -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _sample(sample: ShownSample, of: str) -> Iterator[str]:
    yield f"<article><h3>{_text(heading(sample, of))}</h3><dl>"
    for name, view in sample.views.items():
        yield f"<dt>{_text(name)}</dt><dd>{_view(view)}</dd>"
    shapes = " &nbsp; ".join(f"{_text(name)} {_text(shape)}" for name, shape in sample.shapes.items())
    yield f"</dl><code>{shapes}</code></article>"


def _view(view: View) -> str:
    if isinstance(view, Tokens):
        return f"<pre>{''.join(map(_piece, view.pieces))}</pre>"
    if isinstance(view, Text):
        return f"<pre>{_text(view.text)}</pre>"
    if isinstance(view, Picture):
        return _picture(view)
    if isinstance(view, Sound):
        return _sound(view)
    return f"<pre>{_text(numbers_text(view))}</pre>" if isinstance(view, Numbers) else ""


def _piece(piece: Piece) -> str:
    repeated = f" x {piece.count:,}" if piece.role is Role.PADDING and piece.count > 1 else ""
    hidden = f'<span class="hidden">[{_text(piece.hides.strip())}]</span>' if piece.hides is not None else ""
    return f'<span class="{piece.role.value}">{_text(piece.text)}{repeated}</span>{hidden}'


def _picture(view: Picture) -> str:
    from PIL import Image

    image, file = Image.fromarray(view.pixels), io.BytesIO()
    image.save(file, "PNG")
    width = max(LEAST_WIDTH // max(image.width, 1), 1) * image.width
    return f'<img alt="" width="{width}" src="{_data(file, "image/png")}"><span class="dim">{_text(view.about)}</span>'


def _sound(view: Sound) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(view.rate)
        out.writeframes((np.clip(view.samples, -1, 1) * 32767).astype("<i2").tobytes())
    about = f"{number(view.seconds)} s at {view.rate:,} Hz; {view.about}"
    player = f'<audio controls src="{_data(file, "audio/wav")}"></audio>'
    return f'{_waveform(view.samples)}{player} <span class="dim">{_text(about)}</span>'


def _waveform(samples: np.ndarray, columns: int = 400) -> str:
    """The highest and lowest value of each part of a sound, as a filled shape."""
    parts = np.array_split(samples, min(columns, max(len(samples), 1)))
    upper = [f"{place},{50 - 48 * float(part.max(initial=0.0)):.1f}" for place, part in enumerate(parts)]
    lower = [f"{place},{50 - 48 * float(part.min(initial=0.0)):.1f}" for place, part in enumerate(parts)]
    outline = f"M{' L'.join([*upper, *reversed(lower)])} Z"
    return f'<svg viewBox="0 0 {len(parts)} 100" preserveAspectRatio="none" role="img"><path d="{outline}"/></svg>'


def _data(file: io.BytesIO, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _text(text: str) -> str:
    return escape(visible(text))
