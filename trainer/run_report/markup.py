"""HTML building blocks for run reports, such as tables and bars. They escape the plain texts that they are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..data.report.view_html import shown_text as text

PARTS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def section(name: str, title: str, parts: Iterable[str], about: str = "") -> str:
    """A section with a heading; empty if it has no content."""
    content = "".join(parts)
    if not content:
        return ""
    said = f'<p class="dim">{text(about)}</p>' if about else ""
    return f'<section class="{name}"><h2>{text(title)}</h2>{said}{content}</section>'


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,), label: str = "") -> str:
    """A table that scrolls on narrow screens.

    Args:
        rows: cells; a cell that is ``Html`` stays as it is.
        left: columns of words, which stand left; numbers stand right.
        label: what the table holds, for those who do not see it.
    """
    heads = "".join(f'<th scope="col"{_class(place, left)}>{cell(one)}</th>' for place, one in enumerate(header))
    lines = []
    for row in rows:
        cells = "".join(f"<td{_class(place, left)}>{cell(one)}</td>" for place, one in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    if not lines:
        return ""
    named = f' role="region" aria-label="{text(label)}" tabindex="0"' if label else ""
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll"{named}><table>{body}</table></div>'


class Html(str):
    """HTML that was made here, in a cell of a table."""


def cell(value: Any) -> str:
    return value if isinstance(value, Html) else text(value)


def details(title: str, content: str, name: str = "", opened: bool = False) -> str:
    """Content that is folded up at first."""
    if not content:
        return ""
    marks = (f' id="{name}"' if name else "") + (" open" if opened else "")
    return f"<details{marks}><summary>{text(title)}</summary>{content}</details>"


def bar(share: float, kind: str = "") -> Html:
    """A horizontal bar of this share of its place."""
    width = max(min(share, 1.0), 0.0) * 100
    return Html(f'<span class="bar {kind}" style="width:{width:.1f}%"></span>')


def number(value: Any, digits: int = 5) -> str:
    """A number as people read it; empty for none."""
    if value is None:
        return ""
    if value != value:
        return "not finite"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4f}" if 0.01 <= abs(value) < 1e4 else f"{value:,.{digits - 1}g}"


def size(count: float | None) -> str:
    """Bytes in binary units."""
    if count is None:
        return ""
    scaled, place = float(count), 0
    while scaled >= 1024 and place < len(PARTS) - 1:
        scaled, place = scaled / 1024, place + 1
    return f"{scaled:.0f} {PARTS[place]}" if place == 0 or scaled >= 100 else f"{scaled:.3g} {PARTS[place]}"


def duration(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _class(place: int, left: Sequence[int]) -> str:
    return ' class="words"' if place in left else ""
