"""Make the sections of a run report about the run's history: checkpoints, starts and ends, warnings and errors."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ..checkpoint.layout import MANIFEST, checkpoints_at, read_manifest, step_of
from ..journal import BACK, ENDED, SAVED, STARTED
from .markup import Html, details, duration, number, section, size, table, text
from .overview import STATES
from .run_files import RunFiles

SHOWN_WARNINGS = 8
LONGEST = 600
"""Characters of a warning that are shown."""
STACKS = "logs/stacks_rank_*.txt"
FURTHER = {"overflow.txt": "numbers that became infinite or NaN", STACKS: "stacks of a run that hung"}


def checkpoints(run: RunFiles) -> str:
    """Checkpoints that are there, and how many were written in all."""
    rows = [_checkpoint(path) for path in checkpoints_at(run.folder)]
    saved = len(run.noted(SAVED))
    about = f"{saved} written in all; older ones were removed." if saved > len(rows) else ""
    header = ("step", "state", "plan", "metric", "size", "written")
    return section("checkpoints", "Checkpoints", [table(header, rows, (1, 2, 5), "checkpoints")], about)


def _checkpoint(path: Path) -> tuple[Any, ...]:
    try:
        manifest = read_manifest(path)
        files, wrong = manifest["files"], manifest.get("not_finite")
        bytes_ = sum(int(one["bytes"]) for one in files.values())
        written = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime)
        metric = manifest.get("metric")
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return f"{step_of(path):,}", Html('<span class="warn">damaged</span>'), "", "", "", ""
    ranks = manifest.get("world_size")
    plan = f"{manifest.get('plan') or ''}{f' x {ranks}' if ranks else ''}"
    state = Html(f'<span class="warn">not finite: {text(wrong)}</span>') if wrong else "complete"
    shown = number(metric) if isinstance(metric, int | float) else ""
    return f"{step_of(path):,}", state, plan, shown, size(bytes_), f"{written:%Y-%m-%d %H:%M:%S}"


def starts(run: RunFiles) -> str:
    """Every start of the run: when, from which step, on what, and how it ended."""
    rows = list(_starts(run))
    about = "Rows are the starts of the run; a resume goes on from the newest checkpoint." if len(rows) > 1 else ""
    header = ("", "started", "from step", "to step", "on", "time", "how it ended")
    return section("starts", "Starts, restarts and ends", [table(header, rows, (1, 4, 6), "starts of the run")], about)


def _starts(run: RunFiles) -> Iterator[tuple[Any, ...]]:
    turns = [line for line in run.journal if line["event"] in (STARTED, BACK, ENDED, SAVED)]
    places = [place for place, line in enumerate(turns) if line["event"] == STARTED]
    for count, place in enumerate(places):
        last = count + 1 == len(places)
        until = len(turns) if last else places[count + 1]
        began, rest = turns[place], turns[place + 1 : until]
        ended = next((line for line in rest if line["event"] == ENDED), None)
        how = _how(run, ended, last) + "".join(_gone_back(line) for line in rest if line["event"] == BACK)
        step = ended["step"] if ended else run.step if last else max((line["step"] for line in rest), default=None)
        on = f"{began.get('plan') or ''} x {began.get('ranks')}, {began.get('device')}"
        restarted = " (restarted)" if began.get("attempt") else ""
        took = duration(_seconds(began, ended)) if ended else ""
        shown = _moment(began) + restarted
        yield f"{count + 1}", shown, f"{began['step']:,}", "" if step is None else f"{step:,}", on, took, Html(how)


def _how(run: RunFiles, ended: dict[str, Any] | None, last: bool) -> str:
    if ended is None:
        if last and run.state == "running":
            return '<span class="chip running">running</span>'
        return '<span class="chip killed">ended without a message</span> killed, or its machine was lost'
    state = str(ended.get("how"))
    if last and run.state == "diverged":
        state = "diverged"
    chip = f'<span class="chip {state if state in STATES else ""}">{text(STATES.get(state, state))}</span>'
    return f"{chip} {text(str(ended.get('reason') or '')[:LONGEST])}"


def _gone_back(line: dict[str, Any]) -> str:
    return f'<br><span class="warn">went back to step {line["step"]:,}</span> from step {number(line.get("left"))}'


def faults(run: RunFiles) -> str:
    """Warnings and errors that were logged, the last ones first, and files that tell more of a fault."""
    rows = [
        (when, Html(f'<span class="chip {level.lower()}">{level.lower()}</span>'), said[:LONGEST])
        for when, level, said in reversed(run.warnings)
    ]
    header = ("time", "", "message")
    parts = [table(header, rows[:SHOWN_WARNINGS], (0, 1, 2), "warnings and errors")]
    if len(rows) > SHOWN_WARNINGS:
        more = table(header, rows[SHOWN_WARNINGS:], (0, 1, 2), "earlier warnings and errors")
        parts.append(details(f"{len(rows) - SHOWN_WARNINGS} earlier", more))
    if run.damaged:
        parts.append(f'<p class="note">{run.damaged} damaged lines of metrics.jsonl were left out.</p>')
    for pattern, what in FURTHER.items():
        found = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.glob(pattern))
        parts += [f"<p>{text(what)}: <code>{text(', '.join(found))}</code></p>"] if found else []
    return section("faults", "Warnings and faults", parts)


def _moment(line: dict[str, Any]) -> str:
    return str(line.get("time") or "")[:19].replace("T", " ")


def _seconds(began: dict[str, Any], ended: dict[str, Any]) -> float | None:
    try:
        first, last = (datetime.fromisoformat(str(line.get("time"))) for line in (began, ended))
        return (last - first).total_seconds()
    except (ValueError, TypeError):
        return None
