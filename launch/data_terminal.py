"""Print the report of ``trireme data`` on the terminal. Bars and images are drawn with characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text as Line

from ..trainer.data.report.format_data_report import heading, labels_line, numbers_text, share, sizes_line, spread_cells
from ..trainer.data.report.views import AudioView, ImageView, Numbers, Piece, Role, Text, Tokens, View
from ..trainer.visible_text import visible

if TYPE_CHECKING:
    from ..trainer.data.report.set_facts import LabelCount, SetFacts, Spread
    from ..trainer.data_report import DataReport, ShownSample

STYLES = {Role.READ: "", Role.LEARNT: "bold green", Role.IGNORED: "dim", Role.PADDING: "dim italic"}
HIDDEN = "bold magenta"
LONGEST = 1200
"""Characters of a text that are printed; the page holds all of it."""
MOST_LABELS = 30
BAR = 30
"""Columns of the longest bar."""
WIDE, HIGH = 48, 24
"""Columns and lines of the greatest preview of an image."""
BARS = " ▁▂▃▄▅▆▇█"
SHADES = " .:-=+*#%@"


def print_report(report: DataReport, console: Console | None = None) -> None:
    """Print all of a report."""
    console = console or _console()
    about = "   ".join(f"{name}: {value}" for name, value in report.about.items())
    console.print(Group(Line(visible(about), "dim"), ""))
    for facts in report.sets:
        console.print(_set(facts), soft_wrap=False)
    for sample in report.samples:
        console.print(_sample(sample, report.of, console))
    tokens = [view for sample in report.samples for view in sample.views.values() if isinstance(view, Tokens)]
    if legend := _legend([piece for view in tokens for piece in view.pieces], _has_colours(console)):
        console.print(legend)


def _console() -> Console:
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 120
    return console


def _has_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _set(facts: SetFacts) -> RenderableType:
    parts: list[RenderableType] = [Line.assemble((facts.name, "bold"), f"  {sizes_line(facts)}")]
    if facts.source:
        parts.append(_indented(Line(visible(facts.source), "dim")))
    if facts.parts:
        rows = [(visible(part.name), part.samples, part.share) for part in facts.parts]
        parts.append(_indented(_bars(("source", "samples", "share"), rows)))
    if facts.spreads:
        parts.append(_indented(_spreads(facts.spreads)))
    if facts.labels:
        parts.append(_indented(_labels(facts.labels)))
    parts += [_indented(Line(visible(note), "yellow")) for note in facts.notes]
    return Group(*parts, "")


def _spreads(spreads: Sequence[Spread]) -> Table:
    table = _table("", "least", "median", "95 % below", "most", "")
    for spread in spreads:
        table.add_row(*map(Line, spread_cells(spread)))
    return table


def _labels(labels: Sequence[LabelCount]) -> RenderableType:
    total = sum(label.count for label in labels)
    rows = [(visible(label.name), label.count, label.count / max(total, 1)) for label in labels[:MOST_LABELS]]
    styles = ["" if label.known else "bold red" for label in labels[:MOST_LABELS]]
    return Group(_bars(("label", "count", "share"), rows, styles), *map(Line, labels_line(labels, MOST_LABELS)))


def _bars(header: Sequence[str], rows: Sequence[tuple[str, int | None, float]], styles: Sequence[str] = ()) -> Table:
    table, longest = _table(*header, ""), max((row[2] for row in rows), default=0.0) or 1.0
    for place, (name, count, part) in enumerate(rows):
        shown = "unknown" if count is None else f"{count:,}"
        style = styles[place] if styles else ""
        table.add_row(Line(name, style), shown, share(part), Bar(longest, 0, part, width=BAR, color="cyan"))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold", max_width=40)
    for number, title in enumerate(others, 1):
        table.add_column(title, justify="left" if number == len(others) else "right", no_wrap=number < len(others))
    return table


def _sample(sample: ShownSample, of: str, console: Console) -> RenderableType:
    parts: list[RenderableType] = [Line(heading(sample, of), "bold")]
    for name, view in sample.views.items():
        parts.append(_indented(Line(visible(name), "cyan")))
        parts += [_indented(part, 4) for part in _view(view, console)]
    shapes = "  ".join(f"{name} {shape}" for name, shape in sample.shapes.items())
    return Group(*parts, _indented(Line(visible(shapes), "dim")), "")


def _view(view: View, console: Console) -> Iterator[RenderableType]:
    if isinstance(view, Tokens):
        yield _tokens(view, _has_colours(console))
    elif isinstance(view, Text):
        yield Line(_cut(visible(view.text)))
    elif isinstance(view, ImageView):
        yield Line(visible(view.about), "dim")
        yield _image(view.pixels, _has_colours(console))
    elif isinstance(view, AudioView):
        yield Line(visible(f"{view.seconds:.2f} s at {view.rate:,} Hz; {view.about}"), "dim")
        yield Line(sparkline(view.samples, 60), "green")
    elif isinstance(view, Numbers):
        yield Line(visible(numbers_text(view)))


def _tokens(view: Tokens, colours: bool) -> Line:
    line, left = Line(), LONGEST
    roles = {piece.role for piece in view.pieces}
    marked = not colours and Role.IGNORED in roles  # if no token is ignored, no marks are needed
    for piece in view.pieces:
        for text, style in _parts(piece, marked):
            line.append(text[:left], style)
            left -= len(text)
        if left <= 0:
            line.append(f" ... ({view.count:,} tokens in all)", "dim")
            break
    return line


def _parts(piece: Piece, marked: bool) -> Iterator[tuple[str, str]]:
    """Texts and styles of a piece; ``marked`` puts signs around tokens that the loss counts, for want of colours."""
    repeated = f" x {piece.count:,}" if piece.role is Role.PADDING and piece.count > 1 else ""
    text = visible(piece.text) + repeated
    yield f"«{text}»" if text and marked and piece.role is Role.LEARNT else text, STYLES[piece.role]
    if piece.hides is not None:
        yield f"[{visible(piece.hides).strip()}]", HIDDEN


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text):,} characters in all)"


def _legend(pieces: Sequence[Piece], colours: bool) -> Line:
    """The meaning of the styles of these pieces; empty if none is trained on."""
    roles = {piece.role for piece in pieces}
    line = Line()
    if Role.LEARNT in roles:
        line.append("learnt" if colours else "«learnt»", STYLES[Role.LEARNT]).append(": counted by the loss   ")
    if any(piece.hides is not None for piece in pieces):
        line.append("[hidden]", HIDDEN).append(": the tokens that the model must predict here   ")
    if Role.IGNORED in roles and colours:
        line.append("read only", STYLES[Role.IGNORED]).append(": without a label")
    return line


def _image(pixels: np.ndarray, colours: bool) -> Line:
    """Two rows of pixels per line, as halves of a block in two colours; shades of signs where there are no colours."""
    small = resized(pixels, WIDE, 2 * HIGH)
    line = Line(no_wrap=True, overflow="crop")
    for top in range(0, len(small) - 1, 2):
        for upper, lower in zip(small[top], small[top + 1], strict=True):
            if colours:
                line.append("▀", Style(color=_colour(upper), bgcolor=_colour(lower)))
            else:
                shade = (float(upper.mean()) + float(lower.mean())) / 2
                line.append(SHADES[min(int(shade / 256 * len(SHADES)), len(SHADES) - 1)])
        line.append("\n")
    line.right_crop(1)
    return line


def resized(pixels: np.ndarray, wide: int, high: int) -> np.ndarray:
    """An image in colours of at most that size, with an even number of rows; tiny ones are enlarged."""
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    factor = min(wide / image.width, high / image.height)
    factor = factor if factor < 1 else min(factor, 2)
    width, height = max(round(image.width * factor), 1), max(round(image.height * factor / 2), 1) * 2
    return np.asarray(image.resize((width, height), Image.Resampling.BOX if factor < 1 else Image.Resampling.NEAREST))


def _colour(pixel: np.ndarray) -> Any:
    from rich.color import Color

    return Color.from_rgb(*(int(value) for value in pixel))


def sparkline(samples: np.ndarray, columns: int) -> str:
    """The loudness of an audio clip over time, as bars of eight heights."""
    parts = np.array_split(np.abs(samples), min(columns, max(len(samples), 1)))
    peaks = np.array([part.max(initial=0.0) for part in parts])
    heights = np.ceil(peaks / max(float(peaks.max(initial=0.0)), 1e-12) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[height] for height in heights)


def _indented(part: RenderableType, by: int = 2) -> Padding:
    return Padding(part, (0, 0, 0, by), expand=False)
