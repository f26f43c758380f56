"""For each token position, compute the logit of the label, or the mean or log-sum-exp of all logits. This also works
when each rank holds only a shard of the logits.

Tensor parallelism splits logits by vocabulary. They are DTensors, which these functions do not gather: each rank
reduces its own shard, and the ranks exchange one number per position, or two for log-sum-exp (maximum and sum).
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def own_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of each label [positions]; 0 where the label is not in the vocabulary.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].
    """
    part, first, mesh = _part(logits)
    places = labels - first
    here = (places >= 0) & (places < part.shape[-1])
    own = part.gather(1, places.where(here, 0)[:, None])[:, 0]
    return _summed(own.where(here, 0), mesh)


def mean_logits(logits: Tensor) -> Tensor:
    """Mean of each position's logits [positions]."""
    part, _, mesh = _part(logits)
    return _summed(part.sum(1), mesh) / logits.shape[-1]


def log_sum_exp(logits: Tensor) -> Tensor:
    """Logarithm of the sum of the exponentials of each position's logits [positions]."""
    part, _, mesh = _part(logits)
    if mesh is None:
        return part.logsumexp(1)
    most = part.detach().amax(1)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=mesh.get_group())
    return most + _summed((part - most[:, None]).exp().sum(1), mesh).log()


def _part(logits: Tensor) -> tuple[Tensor, int, Any]:
    """This rank's logits, the token id of the first of them, and the mesh of the ranks that hold the others."""
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    if not isinstance(logits, DTensor):
        return logits, 0, None
    mesh = logits.device_mesh
    if not logits.placements[0].is_shard():
        return logits.to_local(), 0, None
    return logits.to_local(), mesh.get_local_rank() * -(-logits.shape[-1] // mesh.size()), mesh


def _summed(values: Tensor, mesh: Any) -> Tensor:
    if mesh is None:
        return values
    from torch.distributed.tensor import DTensor, Partial, Replicate

    return DTensor.from_local(values, mesh, [Partial()]).redistribute(placements=[Replicate()]).to_local()
