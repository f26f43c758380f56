"""Make the sections of a run report about samples: training samples with coloured labels, and generated texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..data.report.view_html import view_html
from .markup import details, section, text
from .run_files import RunFiles

LEGEND = """<p class="dim">In texts: <span class="learnt">tokens that the loss counts</span>,
<span class="hidden">[hidden tokens to predict]</span>, <span class="ignored">tokens without a label</span>,
<span class="padding">padding</span>.</p>"""
SHOWN_TEXTS = 4
"""Texts of the newest step that are shown at once."""
MOST_TEXTS = 60
STEP = re.compile(r"^--- step (\d+)$", re.MULTILINE)


def samples(run: RunFiles) -> str:
    """The samples that the run has kept."""
    found = [one for one in run.samples.get("samples") or () if isinstance(one, dict)]
    if not found:
        return ""
    articles = "".join(filter(None, map(_sample, found)))
    step = run.samples.get("step")
    about = f"As the collator gave them to the model in step {step} on the first rank." if type(step) is int else ""
    return section("samples", "Samples", [LEGEND, articles] if articles else [], about)


def _sample(sample: dict[str, Any]) -> str:
    views = sample.get("views")
    if not isinstance(views, dict):
        return ""
    try:
        parts = "".join(f"<dt>{text(name)}</dt><dd>{view_html(view)}</dd>" for name, view in views.items())
    except (KeyError, TypeError, ValueError, AttributeError):  # the file is damaged
        return ""
    shapes = " &nbsp; ".join(f"{text(name)} {text(shape)}" for name, shape in dict(sample.get("shapes") or {}).items())
    return f'<article><h3>{text(sample.get("title"))}</h3><dl>{parts}</dl><code class="dim">{shapes}</code></article>'


def written(run: RunFiles) -> str:
    """Texts that the model has written, those of the newest step first."""
    texts = list(_texts(run.written))[::-1][:MOST_TEXTS]
    if not texts:
        return ""
    newest = texts[0][0]
    first = [one for one in texts if one[0] == newest][::-1]
    rest = [*first[SHOWN_TEXTS:], *(one for one in texts if one[0] != newest)]
    parts = [_written(*one) for one in first[:SHOWN_TEXTS]]
    parts.append(details(f"{len(rest)} more", "".join(_written(*one) for one in rest)) if rest else "")
    return section("written", "What the model writes", parts)


def _texts(written: str) -> Iterator[tuple[int, str]]:
    """Step and text of each sample in ``samples.txt``."""
    marks = list(STEP.finditer(written))
    for place, mark in enumerate(marks):
        end = marks[place + 1].start() if place + 1 < len(marks) else len(written)
        yield int(mark[1]), written[mark.end() : end].strip("\n")


def _written(step: int, written_text: str) -> str:
    return f"<figure><figcaption>step {step:,}</figcaption><pre>{text(written_text)}</pre></figure>"
