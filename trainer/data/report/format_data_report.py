"""Format the texts and numbers of the report of ``trireme data``, for both the terminal and the HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...data_report import ShownSample
    from .set_facts import LabelCount, SetFacts, Spread
    from .views import Numbers


def sizes_line(facts: SetFacts) -> str:
    """Sizes of a set."""
    counts = (f"{what}: {'unknown' if count is None else f'{count:,}'}" for what, count in facts.sizes.items())
    return "   ".join(counts)


def spread_cells(spread: Spread) -> list[str]:
    """A distribution as the cells of a row: name, least, median, 95 %, most, and a remark."""
    values = (spread.least, spread.median, spread.high, spread.most)
    remarks = [f"{spread.counted:,} of {spread.of:,} measured"] if spread.counted < spread.of else []
    if spread.limit is not None:
        remarks.append(f"{spread.cut:,} cut at {number(spread.limit)} ({share(spread.cut / spread.counted)})")
    if spread.unreadable:
        remarks.append(f"{spread.unreadable:,} cannot be read")
    return [spread.name, *map(number, values), "; ".join(remarks)]


def number(value: float) -> str:
    """A number as people read it."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def share(value: float) -> str:
    """A share in per cent."""
    return f"{value:.1%}"


def labels_line(labels: Sequence[LabelCount], most: int) -> Iterator[str]:
    """Lines on labels that are not shown, and on those that are refused."""
    if len(labels) > most:
        rest = labels[most:]
        yield f"and {len(rest):,} more labels with {sum(label.count for label in rest):,} in all"
    if wrong := [label for label in labels if not label.known]:
        rows = sum(label.count for label in wrong)
        yield f"{rows:,} without a label that the task knows: such rows are refused when they are read"
    if missing := [label for label in labels if label.known and not label.count]:
        yield f"without a single row: {len(missing):,} of the labels"


def heading(sample: ShownSample, of: str) -> str:
    """The title of a sample."""
    collated = sample.collated
    if collated.position is None:
        return f"sample {collated.index:,} of {of}"
    return f"sample {collated.position:,} of the run: number {collated.index:,} of {of}"


def numbers_text(view: Numbers) -> str:
    """An array in one line."""
    first = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in view.first)
    more = ", ..." if _size(view.shape) > len(view.first) else ""
    between = f", {view.range[0]:.4g} to {view.range[1]:.4g}" if view.range and _size(view.shape) > 1 else ""
    return f"{first}{more}   ({view.dtype} [{', '.join(map(str, view.shape))}]{between})"


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
