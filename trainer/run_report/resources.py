"""Make the sections of a run report about resources: planned and measured memory, bytes sent, pipeline timeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .markup import Html, bar, number, section, size, table, text
from .run_files import RunFiles

PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "gathered": "gathered temporarily",
    "activations": "activations",
    "logits": "logits",
    "host": "offloaded to the CPU",
}
KINDS = {"F": "forward", "B": "backward", "I": "backward, inputs", "W": "backward, weights"}
WIDE, HIGH, LEFT, TOP = 960, 34, 64, 8
"""Width of the drawing of a pipeline, height of a rank's row, and margins, in units of the SVG."""
MOST_RANKS, MOST_ACTIONS = 64, 4096


def measured_of(run: RunFiles) -> dict[str, Any]:
    """The newest measurements of a run; empty if there are none."""
    found = run.noted("measured")
    return found[-1] if found else {}


def memory(run: RunFiles) -> str:
    """Planned and measured bytes by part."""
    found = measured_of(run)
    planned, held = _sizes(_mapping(found.get("planned")).get("memory")), _sizes(found.get("memory"))
    if not planned and not held:
        return ""
    total, host = held.pop("total", None), planned.get("host", 0)
    on_cpu = found.get("device") == "cpu"
    named = sum(held.get(part, 0) for part in PARTS)
    needed = sum(planned.values()) - (0 if on_cpu else host)
    largest = max([*planned.values(), *held.values(), 1])
    rows: list[tuple[Any, ...]] = [
        (title, size(planned.get(part)), size(held.get(part)), _pair(planned.get(part), held.get(part), largest))
        for part, title in PARTS.items()
        if planned.get(part) or held.get(part)
    ]
    if total is not None:
        rest = "the rest: activations, buffers, libraries, Python" if on_cpu else "the rest: activations, buffers"
        rows.append((rest, "", size(max(total - named, 0)), ""))
        whole = "the whole process" if on_cpu else "torch's allocations at their peak"
        rows.append((Html(f"<b>{whole}</b>"), size(needed) if planned else "", size(total), ""))
    about = (
        f"Planned by the formulas of trireme plans; measured in step {number(found.get('step'))} on the rank that "
        "holds most. On the CPU the process also holds the libraries, which no formula counts."
        if on_cpu
        else f"Planned by the formulas of trireme plans; measured in step {number(found.get('step'))} on the rank that "
        "holds most."
    )
    legend = '<p class="key"><span class="bar planned"></span> planned <span class="bar"></span> measured</p>'
    listed = table(("part", "planned", "measured", Html(legend)), rows, (0, 3), "memory by part")
    return section("memory", "Memory", [listed], about)


def _pair(planned: float | None, held: float | None, largest: float) -> Html:
    lines = [bar(value / largest, kind) for value, kind in ((planned, "planned"), (held, "")) if value is not None]
    return Html(f'<span class="bars">{"".join(lines)}</span>')


def traffic(run: RunFiles) -> str:
    """Bytes that the rank which sends most has sent in one step, by kind of collective."""
    found = measured_of(run)
    sent = _sizes(found.get("sent"))
    planned = _mapping(found.get("planned")).get("sent")
    if not sent and not planned:
        return ""
    largest = max([*sent.values(), 1])
    order = sorted(sent.items(), key=lambda item: -item[1])
    rows: list[tuple[Any, ...]] = [(kind, size(count), bar(count / largest)) for kind, count in order if count]
    if sent:
        rows.append((Html("<b>in all</b>"), size(sum(sent.values())), ""))
    if isinstance(planned, int | float) and planned:
        rows.append(("planned", size(planned), ""))
    about = f"By the rank that sends most, in step {number(found.get('step'))}, as ring algorithms send it."
    if not sent:
        about = "Bytes were not counted, since blocks are compiled or weights quantised."
    unknown = found.get("uncounted")
    note = f'<p class="note">Not counted: {text(", ".join(map(str, unknown)))}</p>' if unknown else ""
    return section(
        "traffic", "Bytes sent in a step", [table(("kind", "bytes", ""), rows, (0, 2), "bytes"), note], about
    )


def timeline(run: RunFiles) -> str:
    """One step of a pipeline: the actions of each rank in time."""
    found = measured_of(run)
    rows = list(_rows(found.get("timeline")))[:MOST_RANKS]
    end = max((action[4] for _, actions in rows for action in actions), default=0.0)
    if not rows or end <= 0:
        return ""
    busy = sum(action[4] - action[3] for _, actions in rows for action in actions)
    used = list(dict.fromkeys(action[0] for _, actions in rows for action in actions))
    keys = " ".join(f'<span class="bar {kind}"></span> {text(KINDS[kind])}' for kind in KINDS if kind in used)
    idle = 1 - busy / (end * len(rows))
    about = (
        f"Step {number(found.get('step'))} as measured: {end * 1e3:,.1f} ms, in which ranks are idle or wait for "
        f"messages {idle:.0%} of the time. Numbers are micro-batches."
    )
    return section("timeline", "The pipeline in time", [f'<p class="key">{keys}</p>', _timeline_svg(rows, end)], about)


def _timeline_svg(rows: Sequence[tuple[int, list[Any]]], end: float) -> str:
    high = TOP + HIGH * len(rows) + 24
    scale = (WIDE - LEFT - 8) / end
    stages = sorted({action[1] for _, actions in rows for action in actions})
    parts = []
    for place, (rank, actions) in enumerate(rows):
        top = TOP + place * HIGH
        parts.append(f'<text class="name" x="0" y="{top + HIGH / 2 + 1:.0f}">rank {rank}</text>')
        parts.append(f'<rect class="idle" x="{LEFT}" y="{top}" width="{end * scale:.1f}" height="{HIGH - 6}"/>')
        for kind, stage, micro, began, stopped in actions:
            left, width = LEFT + began * scale, max((stopped - began) * scale, 0.6)
            deeper = " later" if len(stages) > len(rows) and stages.index(stage) >= len(rows) else ""
            title = f"{KINDS[kind]} of micro-batch {micro}, stage {stage}: {(stopped - began) * 1e3:.2f} ms"
            box = f'x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HIGH - 6}" rx="2"'
            parts.append(f'<rect class="{kind}{deeper}" {box}><title>{text(title)}</title></rect>')
            if width > 13:
                parts.append(
                    f'<text class="micro" x="{left + width / 2:.1f}" y="{top + HIGH / 2 + 1:.0f}">{micro}</text>'
                )
    for part in range(5):
        x = LEFT + end * scale * part / 4
        parts.append(f'<text class="tick" x="{x:.0f}" y="{high - 4}">{end * part / 4 * 1e3:,.1f} ms</text>')
    label = f"actions of {len(rows)} ranks in time"
    drawing = (
        f'<svg class="ranks" viewBox="0 0 {WIDE + 24} {high}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )
    return f'<div class="scroll" role="region" aria-label="timeline" tabindex="0">{drawing}</div>'


def _rows(found: Any) -> Iterator[tuple[int, list[Any]]]:
    """Rank and actions of each row, without what is damaged."""
    for row in found if isinstance(found, list) else ():
        if not isinstance(row, dict) or type(row.get("rank")) is not int or not isinstance(row.get("actions"), list):
            continue
        yield row["rank"], [action for action in row["actions"] if _is_action(action)][:MOST_ACTIONS]


def _is_action(action: Any) -> bool:
    if not isinstance(action, list) or len(action) != 5 or action[0] not in KINDS:
        return False
    whole = all(type(value) is int for value in action[1:3])
    return whole and all(isinstance(value, int | float) and 0 <= value < 1e6 for value in action[3:])


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _sizes(found: Any) -> dict[str, float]:
    return {str(k): v for k, v in _mapping(found).items() if isinstance(v, int | float) and 0 <= v < 1e18}
