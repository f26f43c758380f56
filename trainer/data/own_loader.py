"""Create the user's own data loader that a recipe names (``data.loader``), and check its methods and its samples. Such
a loader replaces the data source: it gives samples that are ready for the collator, in its own order.

A loader is one of two kinds. A loader *by position* has ``sample(position)``, which returns the sample at a position of
the endless stream of training samples. A loader *in order* has ``__iter__``, which yields the samples of one epoch in
the global order, the same on every rank. For both kinds, each data rank takes its part of each global batch, so the
result does not depend on the parallelism plan. A resumed run continues with the next sample.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import Problem, UserError, short
from ...models.facts import Facts
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from .open_collator import taken

LOADER = "data.loader"
CONTRACT = "see docs/extending.md: a loader has sample(position) or __iter__, and fingerprint()"


def open_loader(component: Component, given: Mapping[str, Any]) -> Any:
    """The loader that ``component`` names, with its contract checked.

    Args:
        given: values of the engine by name; the constructor gets those that it takes.

    Raises:
        UserError: it does not keep its contract.
    """
    target = locate(component["_target_"])
    with component_errors(LOADER, target, CONSTRUCTOR):
        loader = instantiate(component, **taken(target, given))
    if flaws := list(loader_flaws(type(loader))):
        raise UserError(*(wrong_loader(loader, flaw) for flaw in flaws))
    size = getattr(loader, "size", None)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UserError(wrong_loader(loader, f"has size = {size!r}; set the number of samples of a pass, or None"))
    if not isinstance(getattr(loader, "facts", None) or Facts(), Facts):
        why = "has facts that are not Facts(vocabulary, labels) of trireme.models.facts"
        raise UserError(wrong_loader(loader, why))
    return loader


def loader_flaws(kind: type) -> Iterator[str]:
    """Reasons why a class cannot be used as a loader, as clauses."""
    if not callable(getattr(kind, "sample", None)) and not callable(getattr(kind, "__iter__", None)):
        yield "has neither sample(position) nor __iter__"
    if not callable(getattr(kind, "fingerprint", None)):
        yield "has no fingerprint(), a text that changes when the samples do, which a resume compares"
    for call, arguments in (("sample(position)", ("self", 0)), ("fingerprint()", ("self",))):
        name = call.partition("(")[0]
        method = getattr(kind, name, None)
        if callable(method):
            try:
                inspect.signature(method).bind(*arguments)
            except TypeError:
                yield f"has {name}{inspect.signature(method)}, which is called as {call}"
    if callable(getattr(kind, "state_dict", None)) != callable(getattr(kind, "load_state_dict", None)):
        yield "has one of state_dict and load_state_dict; write both, or neither"


def wrong_loader(loader: Any, why: str) -> Problem:
    """The problem of a loader that does not keep its contract."""
    return Problem(LOADER, why, CONTRACT, f"{type(loader).__module__}.{type(loader).__qualname__}")


def checked(sample: Any, loader: Any, by: str) -> None:
    """Refuse a value that is not a sample.

    Raises:
        UserError: it is none.
    """
    if not isinstance(sample, Mapping) or not all(isinstance(key, str) for key in sample):
        raise UserError(wrong_loader(loader, f"gives {short(sample)} by {by}, not a dict of arrays and numbers"))
    if named := {"index", "position"} & sample.keys():
        raise UserError(
            wrong_loader(loader, f"gives {' and '.join(sorted(named))} by {by}, names that the engine sets")
        )
