"""Evaluate a recipe's model without training (``trireme evaluate``), on its held-out set, its test set or the sets in
``data.eval_sets``. It works under any parallelism plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .load_trained import trained

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def evaluate(
    recipe: RecipeConfig, checkpoint: str | None = None, ema: bool = False, on: str | None = None
) -> dict[str, Any]:
    """Held-out metrics of a recipe on the existing ranks.

    Args:
        checkpoint, ema: see ``trained``.
        on: name of one set: ``held_out``, one of ``data.eval_sets``, or ``test``; None takes those that training
            evaluates.

    Returns:
        Equal on all ranks: ``weights`` (their folder or hub id), ``step`` of the checkpoint, ``eval_<metric>``
        (``eval_<set>_<metric>`` of a further set, ``test_<metric>`` of the test set).

    Raises:
        UserError: something that the user can mend.
    """
    with trained(recipe, checkpoint, ema, on) as model:
        result = dict(model.origin)
        for name in [on] if on else model.placed.corpus.eval_sets:
            result |= model.metrics(name, recipe.trainer.eval_samples, recipe.generation)
    return result
