"""Read the files in a run folder for the run report, such as metrics, recipe, journal and log; this works also while
the run is still training.

Only ``metrics.jsonl`` is needed. All other files may be missing, since older versions and runs with fewer callbacks
write fewer files. No value is trusted: values of an unexpected type are left out, and all text is escaped later.
"""

from __future__ import annotations

import json
import math
import re
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...errors import Problem, UserError
from ..callbacks.metrics_file import FILE_NAME, NOT_FINITE
from ..checkpoint.layout import RECIPE
from ..journal import BACK, ENDED, FILE, STARTED, read_journal
from ..regular_files import read_regular
from ..run_folder import OF_A_RUN
from ..run_lock import is_held
from ..summary import FILE as SUMMARY

SAMPLES, WRITTEN = "shown_samples.json", "samples.txt"
LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d+ (WARNING|ERROR|CRITICAL) ([\w.-]+): (.*)")
MOST_WARNINGS = 200
QUIET_SECONDS = 600.0
"""Seconds without a line after which a run on another machine counts as killed."""
LARGEST = 2**26
"""Bytes of a log file that are read, from its end."""
Line = dict[str, Any]
FIX = "name the folder of a run, such as runs/persimmon_stdlib, or of a study or sweep"


@dataclass
class RunFiles:
    """The contents of a run's folder."""

    folder: Path
    name: str
    lines: list[Line]
    """Training and evaluation lines, whose values are finite or NaN."""
    damaged: int = 0
    """Lines of the metrics file that cannot be read, but for a last one that was cut off."""
    recipe: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    journal: list[Line] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    written: str = ""
    """Texts that the model has written."""
    warnings: list[tuple[str, str, str]] = field(default_factory=list)
    """Time, level and text."""
    state: str = ""
    """State of the run: running, done, stopped, left, diverged, failed, killed; empty if nothing tells."""

    @property
    def step(self) -> int:
        return max((line["step"] for line in self.lines), default=0)

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        return next((line[name] for line in reversed(self.lines) if name in line), None)

    def noted(self, *events: str) -> list[Line]:
        """The journal's lines of these kinds."""
        return [line for line in self.journal if line["event"] in events]


def is_run(folder: Path) -> bool:
    """Whether a folder holds the files of a run."""
    return any((folder / name).is_file() for name in OF_A_RUN)


def read_run(folder: Path, running: bool | None = None, may_be_empty: bool = False) -> RunFiles:
    """Read the folder of a run.

    Args:
        running: whether its run goes on; None looks at its lock, which the process of the run itself must not do.
        may_be_empty: accept a run without a line yet, for callers that wait for the first one.

    Raises:
        UserError: it is not the folder of a run, its metrics file cannot be read, or it has no line yet.
    """
    if not folder.is_dir():
        raise UserError(Problem("RUN", "is not a folder", FIX, str(folder)))
    if not is_run(folder):
        raise UserError(
            Problem("RUN", "is not the folder of a run: it has neither a recipe nor metrics", FIX, str(folder))
        )
    lines, damaged = _metrics(folder / FILE_NAME)
    held = is_held(folder) if running is None else running
    if not lines and not may_be_empty:
        why = "its run has not logged a step yet" if held else "its run has never logged a step"
        fix = "wait for its first step, or give --watch" if held else "look into its log.txt; start the run again"
        raise UserError(Problem("RUN", why, fix, str(folder)))
    run = RunFiles(
        folder=folder,
        name=folder.resolve().name,
        lines=lines,
        damaged=damaged,
        recipe=_mapping(folder / RECIPE, yaml.safe_load),
        summary=_mapping(folder / SUMMARY, json.loads),
        journal=read_journal(folder / FILE),
        samples=_mapping(folder / SAMPLES, json.loads),
        written=_text(folder / WRITTEN),
        warnings=_warnings(_text(folder / "log.txt")),
    )
    run.state = _state(run, held)
    return run


def _metrics(path: Path) -> tuple[list[Line], int]:
    """Lines that can be used, and the number of those that cannot.

    Raises:
        UserError: the file cannot be read, or none of its lines can.
    """
    try:
        raw = read_regular(path)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        denied = isinstance(error, PermissionError)
        fix = "check its permissions" if denied else "restore the file, or leave this run out"
        raise UserError(Problem(str(path), f"cannot be read: {error.strerror or error}", fix)) from None
    every = raw.splitlines()
    lines = [_line(one) for one in every]
    bad = [number for number, line in enumerate(lines, 1) if line is None]
    if bad and len(bad) == len(lines) and (len(bad) > 1 or raw.endswith(b"\n")):
        why = f"is damaged: none of its {len(bad)} lines is a JSON object with a step"
        raise UserError(Problem(str(path), why, "restore the file, or resume the run, which writes it anew"))
    cut_off = bool(bad) and bad[-1] == len(lines) and not raw.endswith(b"\n")
    return [line for line in lines if line is not None], len(bad) - cut_off


def _line(raw: bytes) -> Line | None:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    return {str(name): value for name, given in found.items() if (value := _number(given)) is not None}


def _number(value: Any) -> float | int | None:
    """A number, NaN for one that is not finite; None for anything else, and for truth values."""
    if isinstance(value, str) and value in NOT_FINITE:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else math.nan


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    """Read a file that holds a mapping; empty if it is missing, damaged, or holds anything else."""
    try:
        found = parse(read_regular(path).decode("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return read_regular(path, LARGEST).decode("utf-8", "replace")
    except OSError:
        return ""


def _warnings(log: str) -> list[tuple[str, str, str]]:
    """Warnings and errors of a log file, the last ones first kept; each once, with the time of its last occurrence."""
    found: dict[tuple[str, str], str] = {}
    for line in log.splitlines():
        if match := LOG_LINE.match(line):
            when, level, _, text = match.groups()
            found.pop((level, text), None)
            found[level, text] = when
    return [(when, level, text) for (level, text), when in found.items()][-MOST_WARNINGS:]


def _state(run: RunFiles, held: bool) -> str:
    turns = run.noted(STARTED, BACK, ENDED)
    ended = bool(turns) and turns[-1]["event"] == ENDED
    if held and not ended:
        return "running"
    if (loss := run.last("loss")) is not None and not math.isfinite(loss):
        return "diverged"
    if ended:
        how = turns[-1].get("how")
        return how if how in ("done", "stopped", "left", "failed") else ""
    if turns:
        return "running" if _goes_on_elsewhere(run) else "killed"
    return "done" if run.summary else ""


def _goes_on_elsewhere(run: RunFiles) -> bool:
    """Whether another machine, whose locks cannot always be seen here, has written to the run a moment ago."""
    about = run.noted(STARTED)[-1].get("machine") if run.noted(STARTED) else None
    host = about.get("host") if isinstance(about, dict) else None
    try:
        quiet = time.time() - (run.folder / FILE_NAME).stat().st_mtime
    except OSError:
        return False
    return host is not None and host != socket.gethostname() and quiet < QUIET_SECONDS
