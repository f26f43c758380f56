"""Create the ``Samples`` object of a task, which makes samples from rows. Its class is checked before launch, and its
results at the first row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from ..component import locate
from ..component_errors import CONSTRUCTOR, component_errors
from .base_collator import Sample
from .report.views import Collated, View, as_view
from .samples import Given, Samples

CONTRACT = (
    "see docs/extending.md: Samples have columns, a constructor that takes what the engine gives, and sample(row)"
)


class NotUsable(UserError):
    """A row of which no sample can be made, with the reason."""


def open_samples(path: str, options: Mapping[str, Any]) -> type[Samples]:
    """The class of samples that a task names by its dotted path.

    Raises:
        UserError: it is none, or does not take the options of ``data.samples``.
    """
    if problems := samples_problems(path):
        raise UserError(*problems)
    found = locate(path)
    known = list(inspect.signature(found).parameters)[1:]
    unknown = [option for option in options if option not in known]
    if unknown:
        why, fix = f"is not an option of {found.__name__}", f"its options are {', '.join(known) or 'none'}"
        raise UserError(*(Problem(f"data.samples.{option}", why, fix, options[option]) for option in unknown))
    return found


def samples_problems(path: str) -> list[Problem]:
    """Problems of the class at a dotted path."""
    try:
        found = locate(path)
    except ImportError as error:
        return [
            Problem("task", f"names samples that cannot be imported: {error}", "correct samples in the class", path)
        ]
    return [_wrong(path, flaw) for flaw in _flaws(found)]


def _flaws(found: Any) -> Iterator[str]:
    """Reasons why a class cannot be used as ``Samples``, as clauses."""
    if not isinstance(found, type) or not issubclass(found, Samples):
        yield "is not a class that derives from trireme.trainer.data.samples.Samples"
        return
    columns = getattr(found, "columns", None)
    if not isinstance(columns, dict) or not columns or not all(isinstance(need, bool) for need in columns.values()):
        yield f'has columns = {columns!r}; name them as {{"text": True, "label": False}}: True where every row has it'
    for name in sorted(found.__abstractmethods__):
        yield f"has no {name}{'(self, row)' if name == 'sample' else '(self, given)'}"
    for name, arguments in (("__init__", ("self", "given")), ("sample", ("self", "row"))):
        method = getattr(found, name)
        try:
            inspect.signature(method).bind(*arguments)
        except TypeError:
            yield f"has {name}{inspect.signature(method)}, which is called as {name}({', '.join(arguments)})"


def made_samples(kind: type[Samples], given: Given, options: Mapping[str, Any]) -> Samples:
    """The samples of a run.

    Raises:
        UserError: the constructor fails, or leaves something out.
    """
    with component_errors("task", kind, CONSTRUCTOR):
        samples = kind(given, **options)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(samples.facts, Facts):
        fix = "set self.facts = Facts(vocabulary, labels) of trireme.models.facts"
        raise UserError(_wrong(name, f"has facts that are {type(samples.facts).__name__}, not Facts; {fix}"))
    if samples.processor is not None and not callable(getattr(samples.processor, "save_pretrained", None)):
        why = f"has a processor ({type(samples.processor).__name__}) without save_pretrained(folder)"
        raise UserError(_wrong(name, f"{why}, which checkpoints and exports call"))
    return samples


def usable(samples: Samples, row: dict[str, Any]) -> Sample:
    """The sample of a row.

    Raises:
        NotUsable: the row gives none.
    """
    try:
        return samples.sample(row)
    except ValueError as error:
        raise NotUsable(str(error)) from error


def checked_sample(samples: Samples, row: dict[str, Any]) -> Sample:
    """The sample of the first row, made twice: a sample is a function of its row.

    Raises:
        UserError: it is no sample, or another one at the second call.
    """
    sample, again = usable(samples, row), usable(samples, row)
    name = f"{type(samples).__module__}.{type(samples).__qualname__}"
    if not isinstance(sample, dict) or not all(isinstance(key, str) for key in sample):
        raise UserError(_wrong(name, f"gives {type(sample).__name__} by sample(row), not a dict of arrays and numbers"))
    if taken := {"index", "position"} & sample.keys():
        raise UserError(_wrong(name, f"gives {' and '.join(sorted(taken))} by sample(row), names that the engine sets"))
    if other := [key for key in sample if not same_values(sample[key], again.get(key))]:
        fix = "draw in the collator, from draws(seed, position, purpose)"
        raise UserError(_wrong(name, f"gives another {' and '.join(other)} when sample(row) is called again; {fix}"))
    return sample


def checked_views(samples: Samples, sample: Collated) -> dict[str, View]:
    """The views of a collated sample.

    Raises:
        UserError: ``views`` gives no mapping of names.
        ComponentFailed: it fails.
    """
    with component_errors("task", samples, "views"):
        found = samples.views(sample)
        if isinstance(found, Mapping) and all(isinstance(name, str) for name in found):
            return {name: as_view(value) for name, value in found.items()}
    name = f"{type(samples).__module__}.{type(samples).__qualname__}"
    raise UserError(_wrong(name, f"gives {type(found).__name__} by views(sample), not a dict of what is shown by name"))


def same_values(one: Any, other: Any) -> bool:
    """Whether two values of a sample are equal."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_values(one[key], other[key]) for key in one)
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f"))
    except (TypeError, ValueError):  # arrays of objects
        return True


def _wrong(name: str, why: str) -> Problem:
    return Problem("task", f"names samples that break their contract: {name} {why}", CONTRACT)
