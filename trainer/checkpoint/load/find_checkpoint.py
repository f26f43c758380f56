"""Find the checkpoint to go on from: the newest in which every file is what was written; all ranks find the same.

Where nodes have no common disk, every node holds the whole of it afterwards (``nodes/node_files.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from ....errors import Problem, UserError
from ..layout import checkpoints_at, checkpoints_under, step_of
from ..nodes.node_files import NodeFiles
from .open_source import open_source

log = logging.getLogger("trireme.checkpoint")


def find(root: Path, resume: str, nodes: NodeFiles) -> Path | None:
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
    candidates = by_step(nodes.on_each(lambda: _candidates(root, named)))
    if named is not None and not candidates:
        return _elsewhere(root, named, nodes)
    usable, reason = newest_usable(candidates, nodes, "--resume")
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


def newest_usable(candidates: Sequence[Path], nodes: NodeFiles, field: str) -> tuple[Path | None, str | None]:
    """The first of ``candidates`` in which every file is what was written, on some node: afterwards on every node; or
    None, and what is wrong with the last of them. A collective call.

    Raises:
        UserError: a node has no room for what it lacks; ``field`` is what the user gave.
    """
    reason = None
    for folder in candidates:
        reason = nodes.complete(folder, field)
        if reason is None:
            return folder, None
        if nodes.collective.mesh.is_main:
            log.warning("checkpoint %s %s; it is left as it is and not used", folder, reason)
    return None, reason


def _elsewhere(root: Path, named: Path, nodes: NodeFiles) -> Path:
    """A checkpoint that trireme did not write: where a run begins, never where it silently begins again."""
    collective = nodes.collective
    problem, path = collective(lambda: _look(root, named) if collective.mesh.is_main else (None, named))[0]
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
