"""End a run in whose first step a trained parameter gets no gradient, since it would never change.

Usual reasons are a part of a model that the loss does not reach, an adapter beside a layer whose weight the model uses
past the layer, and a graph that recomputation has cut. A family names the parameters that no loss reaches
(``ModelFamily.unused``); they are frozen when the model is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import Problem, UserError

if TYPE_CHECKING:
    from ..parallel.mesh import Mesh
    from ..parallel.strategy import Strategy

SHOWN = 5
"""Names that the message lists."""


def refuse_untrained(strategy: Strategy, mesh: Mesh) -> None:
    """Check, after the first backward pass, that every trained parameter has a gradient; a collective call.

    Raises:
        UserError: on all ranks, if a parameter has none on any rank that holds it.
    """
    missing = strategy.without_gradient()
    if not mesh.any_flags([bool(missing)])[0]:
        return
    held = {strategy.checkpoint_name(name) for name, one in strategy.named_parameters() if one.requires_grad}
    missing = {strategy.checkpoint_name(name) for name in missing}
    ranks = mesh.gather_objects((held - missing, missing))
    reached = set().union(*(names for names, _ in ranks))
    names = sorted(set().union(*(names for _, names in ranks)) - reached)
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        why = f"has trained parameters that get no gradient in the first step: {', '.join(names[:SHOWN])}{more}"
        fix = f"freeze what the loss does not reach (model.frozen=[{names[0]}]), or correct the model or the task"
        raise UserError(Problem("model", why, fix))
