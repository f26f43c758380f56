"""``trireme report``: find the runs in the folders that were named, write their page, and keep it up to date.

A folder is that of a run, or of a study or sweep, whose runs lie in it. This file neither starts a run nor imports
torch, so a page takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..trainer.callbacks.report import PAGE
from ..trainer.run_report.page import Report, page, write_report
from ..trainer.run_report.run_files import FIX, RunFiles, is_run, read_run
from ..trainer.run_report.study import is_study, read_pictures, read_trials

ENDINGS = ("done", "stopped", "diverged", "left")
"""States of runs that nobody starts again by itself."""
RESTART_SECONDS = 20.0
"""Time that a launcher gets to start a failed run again, while its page is watched."""
MOST_RUNS = 200


@dataclass
class Asked:
    """Run folders of a report, and the study that they belong to."""

    runs: list[Path]
    study: Path | None = None
    """The one folder that was named, if it holds several runs."""


def run(options: argparse.Namespace) -> None:
    """Write the page, or keep writing it until no run goes on.

    Raises:
        UserError: a folder holds no run, a file cannot be read or the page cannot be written.
    """
    asked = find_runs(options.runs)
    out = Path(options.out).expanduser() if options.out else default_place(asked)
    if not options.watch:
        report = make_report(asked)
        _write(report, out)
        print(out, flush=True)
        return
    _watch(options.runs, out, options.every)


def find_runs(folders: Sequence[str]) -> Asked:
    """Run folders of what was named, in the order of their names in a study, each once.

    Raises:
        UserError: a folder is missing, or holds no run.
    """
    found: list[Path] = []
    study = None
    for given in folders:
        folder = Path(os.path.expanduser(given))
        if not folder.is_dir():
            raise UserError(Problem("RUN", "is not a folder", FIX, given))
        alone = is_run(folder) and not is_study(folder)
        inner = [] if alone else sorted(one for one in folder.iterdir() if one.is_dir() and is_run(one))
        if not inner and not is_run(folder):
            raise UserError(Problem("RUN", "holds no run: it has neither a recipe nor metrics", FIX, given))
        study = folder if inner and len(folders) == 1 else None
        found += inner or [folder]
    unique = list({folder.resolve(): folder for folder in found}.values())
    if len(unique) > MOST_RUNS:
        fix = "name the runs that matter, such as RUN_1 RUN_2"
        raise UserError(Problem("RUN", f"{len(unique)} runs are more than a page shows ({MOST_RUNS})", fix))
    return Asked(unique, study)


def default_place(asked: Asked) -> Path:
    """In the folder of the run or study; for several runs in the current folder."""
    folder = asked.study or (asked.runs[0] if len(asked.runs) == 1 else Path())
    return folder / PAGE


def make_report(asked: Asked, refresh: float | None = None) -> Report:
    """Read all runs. Those of a study that have no step yet are left out, unless none has one.

    Args:
        refresh: seconds between two looks at runs that go on; None makes a page that does not load itself again.
    """
    if refresh is not None or len(asked.runs) == 1:
        runs = [read_run(folder, may_be_empty=refresh is not None) for folder in asked.runs]
    else:
        runs = [one for one in (read_run(folder, may_be_empty=True) for folder in asked.runs) if one.lines]
        if not runs:
            raise UserError(
                Problem("RUN", "none of the runs has logged a step", FIX, str(asked.study or asked.runs[0]))
            )
    waits = any(one.state == "running" or not (one.lines or one.state) for one in runs)
    return Report(_told_apart(runs), _title(asked, runs), refresh if waits else None, *_study(asked.study))


def _study(folder: Path | None) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Pictures and trials of a study; empty if the runs are of none."""
    return (read_pictures(folder), read_trials(folder)) if folder else ({}, [])


def html_of(folders: Sequence[str]) -> str:
    """The page of some runs, for notebooks."""
    return page(make_report(find_runs(folders)))


def write_page_of(folders: Sequence[str], out: Path) -> Path:
    """Write the page of some runs; returns its path.

    Raises:
        UserError: a folder holds no run, or the page cannot be written.
    """
    _write(make_report(find_runs(folders)), out)
    return out


def _watch(folders: Sequence[str], out: Path, every: float) -> None:
    """Write the page every few seconds, as long as a run goes on. The first step of a run is waited for, and so is the
    restart of one that has just failed."""
    told, seen_running = False, -RESTART_SECONDS
    while True:
        report = make_report(find_runs(folders), refresh=every)
        waits, ended = report.refresh is not None, all(one.state in ENDINGS for one in report.runs)
        seen_running = time.monotonic() if waits else seen_running
        goes_on = waits or (not ended and time.monotonic() - seen_running < RESTART_SECONDS)
        report.refresh = every if goes_on else None
        _write(report, out)
        if not told:
            print(f"{out}    (open it in a browser; Ctrl-C ends this, not the run)", flush=True)
        told = True
        if not goes_on:
            return
        time.sleep(every)


def _write(report: Report, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_report(report, out)
    except OSError as error:
        fix = "name a file in a folder that can be written: --out FILE"
        raise UserError(Problem("--out", f"cannot be written: {error.strerror or error}", fix, str(out))) from None
    damaged = sum(one.damaged for one in report.runs)
    if damaged and report.refresh is None:
        print(f"note: {damaged} damaged lines of metrics.jsonl were left out", file=sys.stderr)


def _title(asked: Asked, runs: Sequence[RunFiles]) -> str:
    if asked.study is not None:
        return asked.study.resolve().name
    names = ", ".join(one.name for one in runs[:4])
    return f"{names} and {len(runs) - 4} more" if len(runs) > 4 else names


def _told_apart(runs: list[RunFiles]) -> list[RunFiles]:
    """Runs whose folders have the same name get that of the folder above before it."""
    names = [one.name for one in runs]
    for one in runs:
        if names.count(one.name) > 1:
            one.name = "/".join(one.folder.resolve().parts[-2:])
    return runs
