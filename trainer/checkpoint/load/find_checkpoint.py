"""Find the checkpoint to go on from: the newest in which every file is what was written; all ranks find the same.

Where nodes have no common disk, a file counts if some node holds it. What the others lack is sent to them before
anything is loaded: then every node holds the whole checkpoint, and any plan on any ranks can read it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ....errors import Problem, UserError
from ...collective import StepFailed, Together
from ...nodes import Nodes
from ..layout import checkpoints_at, checkpoints_under, fault, not_finite, other_format, read_manifest, verify
from ..node_copy import pass_on
from ..save.write_checkpoint import write_manifest
from .open_source import open_source

log = logging.getLogger("trireme.checkpoint")
Held = tuple[dict[str, Any], set[str]] | str
"""A node's manifest of a checkpoint and the files of it that are whole there; or why it has none."""


def find(root: Path, resume: str, together: Together, nodes: Nodes) -> Path | None:
    """The checkpoint to resume from, verified; equal on all ranks. A collective call.

    Args:
        resume: ``auto`` (the newest whole one under ``root``, if any), ``never``, or a checkpoint or run folder.

    Raises:
        UserError: the named checkpoint is missing or damaged, or every checkpoint of the run is; or a node has no room
            for what it lacks of one.
    """
    if resume == "never":
        return None
    named = None if resume == "auto" else Path(resume).expanduser()
    found = together(lambda: _candidates(root, named) if nodes.leads else [])
    candidates = by_step(found)
    if named is not None and not candidates:
        return _elsewhere(root, named, together)
    usable, reason = newest_usable(candidates, together, nodes, "--resume")
    if candidates and usable is None:
        raise UserError(
            Problem(
                "--resume",
                f"no usable checkpoint: {candidates[-1].name} {reason}",
                "name another with --resume PATH, or start over with --fresh (the old folder is kept)",
                str(candidates[0].parent),
            )
        )
    return usable


def by_step(found: Iterable[list[Path]]) -> list[Path]:
    """All of what nodes have found, the newest first. A checkpoint that is named itself may have any name."""
    return sorted({path for paths in found for path in paths}, key=step_of, reverse=True)


def newest_usable(
    candidates: Sequence[Path], together: Together, nodes: Nodes, field: str
) -> tuple[Path | None, str | None]:
    """The first of ``candidates`` in which every file is what was written, on some node: afterwards on every node; or
    None, and what is wrong with the last of them. A collective call.

    Raises:
        UserError: a node has no room for what it lacks; ``field`` is what the user gave.
    """
    reason = None
    for folder in candidates:
        reason = _unusable(folder, together, nodes, field)
        if reason is None:
            return folder, None
        if together.mesh.is_main:
            log.warning("checkpoint %s %s; it is left as it is and not used", folder, reason)
    return None, reason


def _elsewhere(root: Path, named: Path, together: Together) -> Path:
    """A checkpoint that trireme did not write: where a run begins, never where it silently begins again."""
    problem, path = together(lambda: _look(root, named) if together.mesh.is_main else (None, named))[0]
    if problem is not None:
        raise UserError(problem)
    return path


def _look(root: Path, named: Path) -> tuple[Problem | None, Path]:
    fix = "name a folder such as RUN/checkpoints/step_00000100"
    if not named.exists():
        return Problem("--resume", "does not exist", fix, str(named)), named
    try:
        source = open_source(named)
        source.progress()  # refuses files of weights alone
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # the latter: files that hold something else
        return Problem("--resume", str(error), fix, str(named)), named
    own = checkpoints_under(root)
    if own:
        why = f"would begin again there, but the run has gone on since: {own[0]}"
        fix = "leave --resume out to go on from the newest, or add --fresh to begin again (the run folder is kept)"
        return Problem("--resume", why, fix, str(named)), named
    return None, source.path


def _candidates(root: Path, named: Path | None) -> list[Path]:
    return checkpoints_under(root) if named is None else checkpoints_at(named)


def step_of(path: Path) -> int:
    """The step that a checkpoint's name tells; -1 for any other name."""
    return int(path.name[5:]) if re.fullmatch(r"step_\d+", path.name) else -1


def _unusable(folder: Path, together: Together, nodes: Nodes, field: str) -> str | None:
    """Why a checkpoint cannot be used; None when it can, and then every node holds it."""
    reasons = together(lambda: _not_finite(folder) if nodes.leads else None)
    if reason := next(filter(None, reasons), None):
        return reason
    if nodes.count == 1:
        return together(lambda: verify(folder) if nodes.leads else None)[0]
    results = together(lambda: _held(folder) if nodes.leads else "")
    held = [results[nodes.leader(node)] for node in range(nodes.count)]
    reason = next((entry for entry in held if isinstance(entry, str)), None)
    for manifest in [entry[0] for entry in held if not isinstance(entry, str)]:
        whole = [entry[1] if not isinstance(entry, str) and entry[0] == manifest else None for entry in held]
        lost = [name for name in manifest["files"] if not any(names and name in names for names in whole)]
        if not lost:
            _complete(folder, manifest, whole, together, nodes, field)
            return None
        reason = f"lacks {lost[0]} on every node"
    return reason


def _not_finite(folder: Path) -> str | None:
    reason = not_finite(folder)
    return f"was saved when {reason}" if reason else None


def _held(folder: Path) -> Held:
    try:
        manifest = read_manifest(folder)
        if reason := other_format(manifest):
            return reason
        faults = {name: fault(folder, name, written) for name, written in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"cannot be read: {error}"
    return manifest, {name for name, reason in faults.items() if reason is None}


def _complete(
    folder: Path,
    manifest: dict[str, Any],
    whole: Sequence[set[str] | None],
    together: Together,
    nodes: Nodes,
    field: str,
) -> None:
    """Send what nodes lack of a checkpoint.

    Args:
        whole: for each node, the files it holds; None where it has no such checkpoint (another of the same name makes
            way for it).
    """
    mine = whole[nodes.here]
    place = folder if mine is not None else folder.with_name(f".{folder.name}.arriving")
    sent = [name for name in manifest["files"] if any(names is None or name not in names for names in whole)]
    if sent:
        log.info("sending %d file(s) of %s to nodes that lack them", len(sent), folder)
    try:
        together(lambda: _make_room(place) if nodes.leads and mine is None else None)
        for name in sent:
            source = next(node for node, names in enumerate(whole) if names and name in names)
            lacks = mine is None or name not in mine
            together(
                lambda name=name, source=source, lacks=lacks: pass_on(
                    nodes, source, place / name, manifest["files"][name], receives=lacks
                )
            )
        together(lambda: _settle(place, folder, manifest) if nodes.leads and mine is None else None)
    except StepFailed as failure:
        if nodes.leads and mine is None:
            shutil.rmtree(place, ignore_errors=True)
        fix = "make room on every node, or copy the files there by hand"
        raise UserError(Problem(field, f"cannot be completed on every node: {failure}", fix, str(folder))) from None


def _make_room(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _settle(place: Path, folder: Path, manifest: dict[str, Any]) -> None:
    write_manifest(place, manifest)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(place, folder)
