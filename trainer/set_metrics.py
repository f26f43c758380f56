"""Compute the metrics of one evaluation data set, named as they are logged, such as ``eval_loss``.

For the held-out set of a mixture of sources, each metric is also computed for each source, such as ``eval_loss/wiki``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from ..parallel.micro_batch import MicroBatch
from .data.corpus import Corpus
from .data.data_config import HELD_OUT
from .data.further_sets import prefix_of
from .evaluation import Evaluation

if TYPE_CHECKING:
    from .records import Records

Batches = Iterable[MicroBatch]


def set_metrics(
    evaluation: Evaluation,
    corpus: Corpus,
    name: str,
    limit: int | None,
    records: Records | None = None,
    counted: Callable[[Batches], Batches] = iter,
) -> dict[str, float]:
    """Metrics of a set, such as ``eval_loss``, and ``eval_loss/wiki`` for a source; a collective call.

    Args:
        limit: most samples of the set; None takes all.
        records: takes a record of every sample.
        counted: a function that passes the batches on, and may count them.
    """
    mesh, mixture = evaluation.strategy.mesh, corpus.mixture
    ranks = mesh.data_rank, mesh.data_size
    factors = mixture.factors(limit) if mixture is not None and name == HELD_OUT else {}
    if mixture is not None and factors:
        every = {source: partial(mixture.source_batches, source, limit, *ranks) for source in factors}
        parts = evaluation.ahead.evaluation(every)
        sources = {source: (factor, counted(parts[source])) for source, factor in factors.items()}
        found = evaluation.run_mixed(sources, records)
    else:
        key = f"{name}/{limit}"
        parts = evaluation.ahead.evaluation({key: partial(corpus.eval_batches, limit, *ranks, name)})
        found = evaluation.run(counted(parts[key]), records)
    return {f"{prefix_of(name)}{metric}": value for metric, value in found.items()}
