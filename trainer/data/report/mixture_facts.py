"""Combine the statistics of several data sources into those of their mixture, for the report of ``trireme data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .set_facts import LabelCount, Part, SetFacts


def joined_facts(name: str, of: Mapping[str, tuple[SetFacts, int | None, float]]) -> SetFacts:
    """Facts of a set that mixes several sources: sums of their counts, and the distributions of each.

    Args:
        of: name of a source -> its facts, its number of samples, and its share of the samples that are drawn.
    """
    joined = SetFacts(name, parts=[Part(source, samples, share) for source, (_, samples, share) in of.items()])
    labels: dict[tuple[str, bool], int] = {}
    for source, (facts, _, _) in of.items():
        for what, count in facts.sizes.items():
            before = joined.sizes.get(what, 0)
            joined.sizes[what] = None if count is None or before is None else before + count
        for label in facts.labels:
            labels[label.name, label.known] = labels.get((label.name, label.known), 0) + label.count
        joined.spreads += [replace(spread, name=f"{source}: {spread.name}") for spread in facts.spreads]
        joined.notes += [f"{source}: {note}" for note in facts.notes]
    joined.labels = [LabelCount(label, count, known) for (label, known), count in labels.items()]
    return joined
