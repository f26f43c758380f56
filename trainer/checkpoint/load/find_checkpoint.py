"""Find the checkpoint to resume from: the newest undamaged one of the run, or one that the user names.

All ranks find the same checkpoint. If machines have no shared disk, each of them then receives the files that it lacks
(``nodes/node_files.py``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ....errors import Problem, UserError
from ..layout import checkpoints_at, checkpoints_under, step_of
from ..nodes.node_files import NodeFiles
from .open_source import adapter_problem, open_source

log = logging.getLogger("trireme.checkpoint")


def find(root: Path, resume: str, nodes: NodeFiles) -> Path | None:
    """The checkpoint to resume from, verified; equal on all ranks. A collective call.

    Args:
        resume: ``auto`` (the newest undamaged one under ``root``, if any), ``never``, or a checkpoint or run folder.

    Raises:
        UserError: the named checkpoint is missing or damaged, all checkpoints of the run are damaged, or a node has no
            disk space for the files that it lacks.
    """
    if resume == "never":
        return None
    named = None if resume == "auto" else Path(os.path.expanduser(resume))
    candidates = by_step(nodes.on_each(lambda: _candidates(root, named)))
    if named is not None and not candidates:
        return _find_foreign(root, named, nodes)
    usable, reason = newest_usable(candidates, nodes, "--resume")
    if candidates and usable is None:
        fix = "start over with --fresh (the run folder is kept), or name a sound checkpoint with --resume PATH"
        field, place = ("run.dir", root.parent) if named is None else ("--resume", named)
        raise UserError(Problem(field, f"holds no usable checkpoint: {reason}", fix, str(place)))
    return usable


def by_step(found: Iterable[list[Path]]) -> list[Path]:
    """The checkpoints that any node has found, by falling step. One that the user names may have any folder name."""
    return sorted({path for paths in found for path in paths}, key=step_of, reverse=True)


def newest_usable(candidates: Sequence[Path], nodes: NodeFiles, field: str) -> tuple[Path | None, str | None]:
    """The first undamaged one of ``candidates``, completed on every node; a collective call.

    Args:
        field: the key or option that the user wrote.

    Returns:
        The checkpoint and None, or None and the damage of every candidate in one text.

    Raises:
        UserError: a node has no disk space for the files that it lacks.
    """
    reasons = []
    for folder in candidates:
        reason = nodes.complete(folder, field)
        if reason is None:
            return folder, None
        if nodes.collective.mesh.is_main:
            log.warning("checkpoint %s %s; it is left as it is and not used", folder, reason)
        reasons.append(f"{folder.name} {reason}")
    return None, "; ".join(reasons) or None


def _find_foreign(root: Path, named: Path, nodes: NodeFiles) -> Path:
    """The checkpoint of another tool at ``named``. A new run may begin there, but one with checkpoints may not."""
    collective = nodes.collective
    problem, path = collective(lambda: _check_foreign(root, named) if collective.mesh.is_main else (None, named))[0]
    if problem is not None:
        raise UserError(problem)
    return path


def _check_foreign(root: Path, named: Path) -> tuple[Problem | None, Path]:
    fix = "name a folder such as RUN/checkpoints/step_00000100"
    if not named.exists():
        return Problem("--resume", "does not exist", fix, str(named)), named
    try:
        source = open_source(named)
        source.progress()  # fails for files that hold weights only
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # the last three: files of unexpected form
        return adapter_problem(named, "--resume") or Problem("--resume", str(error), fix, str(named)), named
    own = checkpoints_under(root)
    if own:
        why = f"would begin again there, but the run has gone on since: {own[0]}"
        fix = "leave --resume out to go on from the newest, or add --fresh to begin again (the run folder is kept)"
        return Problem("--resume", why, fix, str(named)), named
    return None, source.path


def _candidates(root: Path, named: Path | None) -> list[Path]:
    return checkpoints_under(root) if named is None else checkpoints_at(named)
