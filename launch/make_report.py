"""``trireme report``: find the runs in the given folders and write one HTML page about them, once or again and again
until the runs have ended.

A given folder may be a run, a study or sweep with its runs inside, or a folder such as ``runs`` that holds several of
these. This file neither starts a run nor imports torch, so a page takes a fraction of a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import Problem, UserError
from ..trainer.callbacks.report import PAGE
from ..trainer.folders import check_new_file
from ..trainer.run_report.page import Report, page, write_report
from ..trainer.run_report.run_files import FIX, RunFiles, is_run, read_run
from ..trainer.run_report.study import is_study, read_study, trial_folders
from .notes import tell

ENDINGS = ("done", "stopped", "diverged", "left")
"""States of runs that nobody starts again by itself."""
RESTART_SECONDS = 20.0
"""Time that a launcher gets to start a failed run again, while its page is watched."""
MOST_RUNS = 200
NO_RUN = "holds no run: it has neither a recipe nor metrics"
DEEPEST = 2
"""Levels of folders in which runs are looked for: ``runs`` holds studies, and those hold trials."""


@dataclass
class Asked:
    """The runs that a report shows."""

    runs: dict[Path, str]
    """Run folders with their names on the page, each once."""
    named: list[Path]
    """The folders that were named."""
    studies: list[Path]
    """Folders of studies, all of whose trials are shown."""

    @property
    def alone(self) -> Path | None:
        """The one folder that was named; None if there were several."""
        return self.named[0] if len(self.named) == 1 else None


def run(options: argparse.Namespace) -> None:
    """Write the page once, or again and again until no run goes on.

    Raises:
        UserError: a folder holds no run, a file cannot be read or the page cannot be written.
    """
    out = None if options.out is None else page_file(options.out, "--out")
    asked = find_runs(options.runs)
    out = out or page_file(str(default_page_file(asked)), "--out")
    if not options.watch:
        report = make_report(asked)
        _write(report, out)
        print(out, flush=True)
        return
    _watch(options.runs, out, options.every)


def page_file(given: str, option: str) -> Path:
    """The file that ``option`` names for a page.

    Raises:
        UserError: it is a folder, cannot be written, or holds something else than a page.
    """
    out = check_new_file(given, option, PAGE)
    try:
        with out.open("rb") if out.is_file() else nullcontext() as file:
            there = file.read(256).lstrip().lower() if file else b""
    except OSError as error:
        why = f"is there already and cannot be read: {error.strerror or error}"
        raise UserError(Problem(option, why, f"choose another name, such as {PAGE}", given)) from None
    if there and not there.startswith((b"<!doctype html", b"<html")):
        why = "is there already and is not a page, so it would be lost"
        raise UserError(Problem(option, why, f"choose another name, such as {PAGE}", given))
    return out


def find_runs(folders: Sequence[str]) -> Asked:
    """The run folders in the given folders, each once; those of a study in the order of their names.

    Raises:
        UserError: a folder is missing, holds no run, or lies in one.
    """
    found: dict[Path, tuple[Path, str]] = {}
    studies: dict[Path, Path] = {}
    named = [Path(os.path.expanduser(given)) for given in folders]
    for folder in named:
        if not folder.is_dir():
            raise UserError(Problem("RUN", "is not a folder", FIX, str(folder)))
        if outer := _run_of_checkpoints(folder.absolute()):
            why = "holds checkpoints, and the steps are logged in the folder of their run"
            raise UserError(Problem("RUN", why, f"name the run: trireme report {outer}", str(folder)))
        inner = list(_runs_in(folder, DEEPEST))
        if not inner:
            none = "is a study without a trial yet" if is_study(folder) else NO_RUN
            raise UserError(Problem("RUN", none, FIX, str(folder)))
        for run in inner:
            found.setdefault(run.resolve(), (run, _name(run, folder, len(named) > 1)))
            if run != folder and is_study(run.parent):
                studies.setdefault(run.parent.resolve(), run.parent)
    if len(found) > MOST_RUNS:
        fix = "name the runs that matter, such as RUN_1 RUN_2"
        raise UserError(Problem("RUN", f"{len(found)} runs are more than a page shows ({MOST_RUNS})", fix))
    return Asked(dict(found.values()), named, list(studies.values()))


def _runs_in(folder: Path, levels: int) -> Iterator[Path]:
    """The run folder itself, the trials of a study, or the runs in folders below."""
    if is_study(folder):
        yield from trial_folders(folder)
    elif is_run(folder):
        yield folder
    elif levels:
        with suppress(PermissionError):
            for one in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
                yield from _runs_in(one, levels - 1)


def _run_of_checkpoints(folder: Path) -> Path | None:
    """The run whose checkpoint, or folder of checkpoints, this is."""
    inside = (each for each in (folder, folder.parent) if each.name == "checkpoints")
    return next((each.parent for each in inside if is_run(each.parent)), None)


def _name(run: Path, named: Path, beside_others: bool) -> str:
    """The name of a run: its path in the folder that was named, after that folder's name if several were named."""
    if run == named:
        return run.resolve().name
    inside = run.relative_to(named).as_posix()
    return f"{named.resolve().name}/{inside}" if beside_others else inside


def default_page_file(asked: Asked) -> Path:
    """The path of the page: in the folder that was named, or in the current folder if several were named."""
    return (asked.alone or Path()) / PAGE


def make_report(asked: Asked, refresh: float | None = None) -> Report:
    """Read all runs. Those of a study that have no step yet are left out, unless none has one.

    Args:
        refresh: seconds between two looks at runs that go on; None makes a page that does not load itself again.
    """
    runs = _readable(asked, may_be_empty=refresh is not None or len(asked.runs) > 1)
    if refresh is None:
        runs = [one for one in runs if one.lines]
        if not runs:
            raise UserError(Problem("RUN", "none of the runs has logged a step", FIX, str(asked.named[0])))
    waits = any(one.state == "running" or not (one.lines or one.state) for one in runs)
    runs = _with_unique_names(runs)
    return Report(runs, _title(asked, runs), refresh if waits else None, list(map(read_study, asked.studies)))


def _readable(asked: Asked, may_be_empty: bool) -> list[RunFiles]:
    """The runs whose files can be read; a note names each of the others.

    Raises:
        UserError: there is none.
    """
    runs, problems = [], []
    for folder, name in asked.runs.items():
        try:
            runs.append(replace(read_run(folder, may_be_empty=may_be_empty), name=name))
        except UserError as error:
            problems += error.problems
    if not runs:
        raise UserError(*problems)
    tell([f"left out: {each.field} {each.why}" for each in problems if isinstance(each, Problem)])
    return runs


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
        if not told and not goes_on:
            tell(["no run goes on: the page is written once, without --watch"])
            print(out, flush=True)
        elif not told:
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
    names = [folder.resolve().name for folder in asked.named]
    if len(set(names)) < len(names) and len(names) == len(runs):
        names = [one.name for one in runs]
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _with_unique_names(runs: list[RunFiles]) -> list[RunFiles]:
    """Put the name of the folder above before the names of runs that share a name, until all names differ."""
    while len(names := [one.name for one in runs]) > len(set(names)):
        for one in [one for one in runs if names.count(one.name) > 1]:
            parts = one.folder.resolve().parts
            one.name = "/".join(parts[-one.name.count("/") - 2 :])
    return runs
