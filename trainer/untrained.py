"""Find trained parameters that get no gradient in the first step, and end the run or warn of them, since they would
never change.

Usual reasons are a part of a model that the loss does not depend on, an adapter on a layer whose weight the model uses
without calling the layer, and an autograd graph that activation recomputation has cut. A model family lists the
parameters that no loss depends on (``ModelFamily.unused``); they are frozen when the model is built. Any other
parameter without a gradient ends the run. The exception is transformers' classes without a family file: many of
these have modules that a head does not use, so a warning is logged instead. With adapters, the run is always ended.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..models.low_rank import is_part
from ..models.other_families import AUTO

if TYPE_CHECKING:
    from ..models.model_config import ModelConfig
    from ..parallel.mesh import Mesh
    from ..parallel.strategy import Strategy

log = logging.getLogger("trireme.trainer")
LIBRARY = "transformers."
"""Prefix of the module paths of classes whose parts the user cannot change."""
SHOWN = 5
"""Names that the message lists."""


def _left_out(names: Sequence[str], reached: Collection[str]) -> Iterator[str]:
    """What to write so that parameters are not trained: layers without an adapter, and frozen parameters.

    Args:
        reached: names of the trained parameters that get a gradient.
    """
    adapted, others = ([name for name in names if is_part(name) == of] for of in (True, False))
    if adapted:
        patterns = ", ".join(f"'{re.escape(part)}(\\..*)?'" for part in _parts_without(adapted, reached))
        yield f'give layers that the loss does not use no adapter ("model.adapter.exclude=[{patterns}]")'
    if others:
        patterns = ", ".join(f"'{part}.*'" for part in _parts_without(others, reached))
        yield f'freeze what the loss does not reach ("model.frozen=[{patterns}]")'


def _parts_without(names: Sequence[str], reached: Collection[str]) -> list[str]:
    """The largest parts of a model that hold ``names`` and nothing that is reached, by their paths."""
    used = {name[:place] for name in reached for place, sign in enumerate(name) if sign == "."}
    found = dict[str, None]()
    for name in names:
        ends = [place for place, sign in enumerate(name) if sign == "."]
        found[next((name[:end] for end in ends if name[:end] not in used), name)] = None
    return [*found]


def refuse_untrained(strategy: Strategy, mesh: Mesh, model: ModelConfig) -> None:
    """Check, after the first backward pass, that every trained parameter has a gradient; a collective call.

    Raises:
        UserError: on all ranks, if a parameter has none on any rank that holds it, unless that is only a warning.
    """
    missing = strategy.without_gradient()
    if not mesh.any_flags([bool(missing)])[0]:
        return
    held = {strategy.checkpoint_name(name) for name, one in strategy.named_parameters() if one.requires_grad}
    missing = {strategy.checkpoint_name(name) for name in missing}
    ranks = mesh.gather_objects((held - missing, missing))
    reached = set().union(*(names for names, _ in ranks))
    names = sorted(set().union(*(names for _, names in ranks)) - reached)
    if names and not reached:
        why = "gives a loss that depends on no weight: the gradient of the first step is zero"
        raise UserError(Problem("task", why, "compute the loss from outputs; docs/extending.md has an example"))
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        why = f"has trained parameters that get no gradient in the first step: {', '.join(names[:SHOWN])}{more}"
        fix = f"{' and '.join(_left_out(names, reached))}, or correct the model or the task"
        of_a_library = model.family == AUTO and (model.architecture or LIBRARY).startswith(LIBRARY)
        if not of_a_library or model.adapter is not None:
            raise UserError(Problem("model", why, fix))
        if mesh.is_main:
            log.warning("the model %s; %s", why, fix)
