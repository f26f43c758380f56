"""Jinja filters for chat templates that keep the record of which message each character comes from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from .traced_text import Traced, formatted, joined, json_text


def traced_filters(plain: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters of a Jinja environment, changed so that they keep this record."""
    own = {"tojson": json_text, "join": _join, "indent": _indent, "format": _format}
    return {**{name: _followed(name, function) for name, function in plain.items()}, **own}


def _followed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result belongs to the message of its arguments, if it makes a new text of them (``title``)."""

    @functools.wraps(function)  # with the marks by which jinja2 gives it the context
    def followed(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        if not isinstance(found, str) or isinstance(found, Traced):
            return found
        given = [each for each in (*args, *options.values()) if isinstance(each, Traced)]
        marks = {mark for each in given for _, mark in each.spans if mark.message is not None}
        if len(marks) > 1:
            raise ValueError(f"the filter {name} joins texts of several messages, which cannot be followed")
        return Traced(str.__str__(found), [(len(found), mark) for mark in marks]) if marks else found

    return followed


def _format(value: Any, *args: Any, **named: Any) -> str:
    """jinja2's filter ``format``, traced."""
    if args and named:
        raise TypeError("the filter format takes values by place or by name, not both")
    return formatted(value if isinstance(value, str) else str(value), named or args)


def _join(value: Any, d: str = "", attribute: Any = None) -> Traced:
    parts = value if attribute is None else [each[attribute] for each in value]
    return Traced(d).join(str(each) for each in parts)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """jinja2's filter ``indent``, traced."""
    before = " " * width if isinstance(width, int) else width
    lines = joined([text, "\n"]).splitlines()
    rest = [joined([before, line]) if blank or line else line for line in lines[1:]]
    out = Traced("\n").join([lines[0], *rest])
    return joined([before, out]) if first else out
