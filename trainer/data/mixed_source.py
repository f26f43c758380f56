"""The settings of one source in a mixture of data sources, checks of the sources' names and weights, and error messages
that name the source.

This file imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ...errors import Problem, UserError, refuse
from ..component import Component

SOURCES = "data.sources"


@dataclass
class MixedSource:
    """One source of a mixture."""

    source: Component
    """Source of the documents or rows, as ``data.source`` would name it."""
    weight: float = 1.0
    """Share of this source in the samples, relative to the weights of the others."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names of columns that differ in this source, beside those of ``data.columns``."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if not (math.isfinite(self.weight) and self.weight > 0):
            yield f"weight={self.weight} is not above 0; give a weight such as 1, or leave this source out"


def source_key(name: str) -> str:
    """Key of a source of the mixture in the recipe."""
    return f"{SOURCES}.{name}.source"


def mixture_flaws(sources: Mapping[str, MixedSource]) -> Iterator[str]:
    """Messages for ``DataConfig`` on wrong names of sources in a mixture."""
    if not sources:
        yield "sources={} names no source; write sources: {NAME: {source: ..., weight: 1}}, or source"
    for name in sources:
        if not str(name).isidentifier():
            yield (
                f"sources={name!r} is wrong because a name of a source is a word of letters, digits and underscores; "
                "choose another name"
            )


@contextmanager
def of_source(name: str) -> Iterator[None]:
    """Context in which problems that do not name the source of the mixture get its name.

    Raises:
        UserError: as inside, with these problems.
    """
    try:
        yield
    except UserError as error:
        named = [each if isinstance(each, str) else problem_of_source(each, name) for each in error.problems]
        raise UserError(*named) from error


def problem_of_source(problem: Problem, name: str) -> Problem:
    """``problem``, which names the source of the mixture that has it."""
    if f"{SOURCES}.{name}" in str(problem):
        return problem
    return replace(problem, why=f"in the source {name}: {problem.why}")
