"""Run a function on one, some or all ranks, and share results and errors, so that no rank waits for one that failed.

``on_main`` and ``on_ranks`` do this for errors with a message for the user (``UserError``, ``ComponentFailed``). Any
other error is raised where it happened, and the launcher then ends the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from ..errors import ComponentFailed, UserError
from ..parallel.mesh import Mesh

T = TypeVar("T")


class AnyRankFailed(Exception):
    """A rank could not read or write; raised on every rank."""


@dataclass(frozen=True)
class Collective:
    """Calls a function on all ranks, which exchange its results and errors through a process group."""

    mesh: Mesh
    group: dist.ProcessGroup | None = None
    """Process group of all ranks that nothing else uses meanwhile; None takes the group of training."""

    def __call__(self, function: Callable[[], T]) -> list[T]:
        """Run ``function`` on every rank; returns the results of all ranks, in rank order.

        Raises:
            AnyRankFailed: on every rank, with the first OSError of any rank.
            Exception: any other error is raised where it happened, and as a RuntimeError on the other ranks.
        """
        value, failed, bug = None, None, None
        try:
            value = function()
        except OSError as failure:
            failed = f"{failure.strerror or failure}" + (f": {failure.filename}" if failure.filename else "")
        except Exception as error:
            bug = error
        results = self.mesh.gather_objects((value, failed, bug and f"{type(bug).__name__}: {bug}"), self.group)
        if bug:
            raise bug
        for rank, (_, _, error) in enumerate(results):
            if error:
                raise RuntimeError(f"{error} (rank {rank})")
        for _, error, _ in results:
            if error:
                raise AnyRankFailed(error)
        return [value for value, _, _ in results]


def on_main(mesh: Mesh, function: Callable[[], object]) -> None:
    """Run on rank 0; its UserError is raised on all ranks."""
    on_ranks(mesh, mesh.is_main, function)


def on_ranks(mesh: Mesh, here: bool, function: Callable[[], object]) -> None:
    """Run on the ranks where ``here`` is true; an error of one rank that has a message is raised on all ranks."""
    refused: tuple[type, tuple] | None = None
    if here:
        try:
            function()
        except UserError as error:
            refused = UserError, error.problems
        except ComponentFailed as error:
            refused = ComponentFailed, (error.problem,)
    for found in mesh.gather_objects(refused):
        if found:
            kind, problems = found
            raise kind(*problems)
