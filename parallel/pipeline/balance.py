"""Distribute a model's blocks over pipeline stages so that the most expensive stage, by estimated operations per token,
is as cheap as possible.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate

from torch import nn
from transformers import PreTrainedModel

from ...models.family import ModelFamily
from ...models.find_blocks import blocks_of, heads_of


def balanced_split(
    model: PreTrainedModel, family: ModelFamily, stages: int, given: list[int] | None = None
) -> list[int]:
    """Blocks of each stage, first to last.

    Args:
        model: the whole model, on the meta device.
        given: the split to use; None balances ``stage_costs``.
    """
    if given is not None:
        return list(given)
    blocks, head = block_costs(model, family)
    return balance([*blocks[:-1], blocks[-1] + head], stages)


def block_costs(model: PreTrainedModel, family: ModelFamily) -> tuple[list[int], int]:
    """Multiply-adds per token of each block, and of the head.

    A matrix of n elements costs n multiply-adds per token in the forward pass and 2n in the backward pass, so costs are
    compared by n (https://arxiv.org/abs/2001.08361, section 2.1). The embedding is a look-up and costs nothing.
    Attention scores are left out, since they are nearly equal in all blocks, and so are vectors (norms, biases).
    """
    blocks = [_matrices(block) for block in blocks_of(model, family)]
    return blocks, sum(_matrices(head) for _, head in heads_of(model, family))


def balance(costs: list[int], stages: int) -> list[int]:
    """Lengths of the ``stages`` contiguous, non-empty runs of ``costs`` whose largest sum is smallest; exact.

    Of several solutions it takes the most even one, with the least sum of squares.

    Raises:
        ValueError: more stages than costs.
    """
    if stages > len(costs):
        raise ValueError(f"{len(costs)} blocks cannot fill {stages} stages; use at most {len(costs)}")
    ends = [0, *accumulate(costs)]

    def cuts(start: int, left: int) -> range:
        """Possible ends of the first stage, if ``left`` stages remain from ``start`` on."""
        return range(start + 1, len(costs) - left + 2)

    @cache
    def largest(start: int, left: int) -> int:
        if left == 1:
            return ends[-1] - ends[start]
        return min(max(ends[cut] - ends[start], largest(cut, left - 1)) for cut in cuts(start, left))

    limit = largest(0, stages)

    @cache
    def squares(start: int, left: int) -> tuple[float, tuple[int, ...]]:
        if left == 1:
            cost = ends[-1] - ends[start]
            return (cost**2 if cost <= limit else float("inf")), (len(costs) - start,)
        candidates = []
        for cut in cuts(start, left):
            cost = ends[cut] - ends[start]
            if cost <= limit:
                rest, sizes = squares(cut, left - 1)
                candidates.append((cost**2 + rest, (cut - start, *sizes)))
        return min(candidates, default=(float("inf"), ()))

    return list(squares(0, stages)[1])


def _matrices(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.dim() > 1)
