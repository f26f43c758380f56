"""Find out which ranks see the same run folder, since ranks on different disks store different parts of a checkpoint.

In this package, a *node* is a set of ranks that see the same run folder: one machine, or a hundred machines with a
shared network disk.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from ....errors import Problem, UserError
from ....parallel.mesh import Mesh


@dataclass(frozen=True)
class Nodes:
    """The node of every rank."""

    of_rank: tuple[int, ...]
    """Number of the node of each rank."""
    rank: int
    """Number of this rank."""
    group: dist.ProcessGroup | None = None
    """Process group of the first ranks of all nodes; None on other ranks, and if there is only one node."""

    @property
    def count(self) -> int:
        return max(self.of_rank) + 1

    @property
    def here(self) -> int:
        """The node of this rank."""
        return self.of_rank[self.rank]

    @property
    def leads(self) -> bool:
        """Whether this rank is the first of its node, which creates, renames and removes folders there."""
        return self.leader(self.here) == self.rank

    def leader(self, node: int) -> int:
        """The first rank of ``node``."""
        return self.of_rank.index(node)


def find_nodes(folder: Path, mesh: Mesh, shared: bool | None) -> Nodes:
    """Find out which ranks see the same ``folder``, which is created if it is missing; a collective call.

    The first rank of each machine (LOCAL_RANK 0) writes a file there, and all ranks test which of these files they see.

    Args:
        shared: the value of ``checkpoint.shared``.

    Raises:
        UserError: a machine cannot write there, ranks of one machine see different folders, or ``shared`` is wrong.
    """
    one = Nodes((0,) * mesh.world_size, mesh.rank)
    if mesh.world_size == 1 or shared:
        return one
    first = [local == 0 for local in mesh.gather_objects(int(os.environ.get("LOCAL_RANK", mesh.rank)))]
    if sum(first) < 2:
        return one
    seen = _probe(folder, mesh, first[mesh.rank])
    of_rank = tuple(sorted(set(seen)).index(rank) for rank in seen)
    leaders = sorted(set(seen))
    if shared is False and len(leaders) < sum(first):
        raise UserError(
            Problem("checkpoint.shared", "is false, but machines see the same run folder", "leave it out", str(folder))
        )
    return Nodes(of_rank, mesh.rank, mesh.new_group(leaders)) if len(leaders) > 1 else one


def _probe(folder: Path, mesh: Mesh, first: bool) -> list[int]:
    """For each rank, the lowest rank whose file it sees."""
    token, error = secrets.token_hex(8), None
    probe = folder / f".probe.{token}"
    try:
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
    except OSError as failure:
        error = f"cannot be written on every machine: {failure.strerror or failure}"
    tokens, errors = zip(*mesh.gather_objects((token if first else None, error)), strict=True)
    # Files are looked up by name, because network disks cache the listing of a folder.
    found = next((rank for rank, name in enumerate(tokens) if name and (folder / f".probe.{name}").exists()), None)
    seen = mesh.gather_objects(found)
    if first and error is None:
        probe.unlink(missing_ok=True)
    mesh.barrier()  # the folder may be renamed only after all ranks have looked
    problem = next(filter(None, errors), None)
    if problem is None and None in seen:
        problem = f"is not the same folder for all ranks of a machine (rank {seen.index(None)} sees no file of others)"
    if problem:
        raise UserError(Problem("run.dir", problem, "choose a folder that exists on every machine", str(folder)))
    return seen
