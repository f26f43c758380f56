"""``Traced``: strings that remember where each character comes from, through the operations of a chat template.

The string operations that Jinja templates use (slices, ``strip``, ``split``, ``replace``, ``+`` and others) keep the
origin of every character that remains. So a single rendering gives the origin of every character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, SupportsIndex


class Mark(NamedTuple):
    """Where a character comes from."""

    message: int | None = None
    """Number of the message that it was copied from; ``ELSEWHERE`` for tools and the like; None if the template wrote
    it."""
    field: str = ""
    """Field of that message."""
    turn: int | None = None
    """Message at which the template stood when it wrote the character."""
    generated: bool = False
    """Whether it stands in a block ``{% generation %}``."""

    def at(self, turn: int) -> Mark:
        """The mark of a character that is written at a message."""
        return Mark(self.message, self.field, turn, self.generated)

    def said_by_model(self) -> Mark:
        """The mark of a character that a template says the model writes."""
        return Mark(self.message, self.field, self.turn, True)


ELSEWHERE = -1
"""Value of ``Mark.message`` for characters that come from tools, documents or arguments of the template."""
PLAIN = Mark()
Span = tuple[int, Mark]
"""Neighbouring characters with one mark: their number, and the mark."""


class Traced(str):
    """A text with the marks of its characters."""

    spans: tuple[Span, ...]

    def __new__(cls, text: str = "", spans: Iterable[Span] | None = None) -> Traced:
        made = super().__new__(cls, text)
        made.spans = tuple(_merged(((len(text), PLAIN),) if spans is None else spans))
        return made

    def __str__(self) -> Traced:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self._part(place, place + 1) for place in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> Traced:
        if not isinstance(key, slice):
            place = range(len(self))[key]
            return self._part(place, place + 1)
        places = range(len(self))[key]
        if places.step == 1:
            return self._part(places.start, max(places.start, places.stop))
        return joined([self._part(place, place + 1) for place in places])

    def __add__(self, other: str) -> Traced:
        return joined([self, other]) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Traced:
        return joined([other, self]) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> Traced:
        return joined([self] * times.__index__())

    def __rmul__(self, times: SupportsIndex) -> Traced:  # type: ignore[override]
        return self * times

    def __mod__(self, values: Any) -> str:
        return formatted(self, values)

    def __rmod__(self, template: str) -> str:
        return formatted(template, self)

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.rstrip(chars).lstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> Traced:
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> Traced:
        return self._part(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> Traced:
        return self._part(0, len(self) - (len(suffix) if suffix and self.endswith(suffix) else 0))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Traced]:  # type: ignore[override]
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Traced]:  # type: ignore[override]
        whole, kept = str.splitlines(self, True), str.splitlines(self, keepends)
        starts = [sum(map(len, whole[:number])) for number in range(len(whole))]
        return [self._part(start, start + len(line)) for start, line in zip(starts, kept, strict=True)]

    def partition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:  # type: ignore[override]
        return self._three(str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[Traced, Traced, Traced]:  # type: ignore[override]
        return self._three(str.rpartition(self, sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        if not old:
            return joined([str.replace(self, old, new, count)])
        pieces = self._found(str.split(self, old, count), old)
        parts: list[str] = [pieces[0]]
        place = len(pieces[0])
        for piece in pieces[1:]:
            # The replacement of a message's characters belongs to the same message.
            parts += [_marked(new, self._mark(place)), piece]
            place += len(old) + len(piece)
        return joined(parts)

    def join(self, parts: Iterable[str], /) -> Traced:
        every: list[str] = []
        for part in parts:
            every += [self, part] if every else [part]
        return joined(every)

    def marked(self, change: Callable[[Mark], Mark]) -> Traced:
        """The text with other marks."""
        return Traced(str.__str__(self), ((size, change(mark)) for size, mark in self.spans))

    def _part(self, start: int, stop: int) -> Traced:
        return Traced(str.__getitem__(self, slice(start, stop)), _cut(self.spans, start, stop))

    def _mark(self, place: int) -> Mark:
        return next((mark for _, mark in _cut(self.spans, place, place + 1)), PLAIN)

    def _found(self, pieces: list[str], sep: str | None) -> list[Traced]:
        """``pieces``, which follow each other in this text with ``sep``, or white space, between them."""
        place, found = 0, []
        for piece in pieces:
            place = place if sep is not None else self.find(piece, place)
            found.append(self._part(place, place + len(piece)))
            place += len(piece) + len(sep or "")
        return found

    def _three(self, parts: tuple[str, str, str]) -> tuple[Traced, Traced, Traced]:
        first, second, third = self._found(list(parts), "")
        return first, second, third


def _of_one_length(name: str) -> Callable[..., Traced]:
    """A method that changes characters in their places, such as ``upper``."""
    plain = getattr(str, name)

    def method(self: Traced) -> Traced:
        text = plain(self)
        if len(text) == len(self):
            return Traced(text, self.spans)
        places = range(len(self))
        return joined([_marked(plain(str.__getitem__(self, place)), self._mark(place)) for place in places])

    return method


for _name in ("upper", "lower", "capitalize", "title", "swapcase", "casefold"):
    setattr(Traced, _name, _of_one_length(_name))


def joined(parts: Iterable[str]) -> Traced:
    """Texts one after the other; those that are not traced are the template's own."""
    every = list(parts)
    spans = (span for part in every for span in (part.spans if isinstance(part, Traced) else ((len(part), PLAIN),)))
    return Traced("".join(map(str, every)), spans)


def formatted(template: str, values: Any) -> str:
    """``template % values``, traced where the pattern holds nothing but ``%s`` and ``%%``, or is no message's text."""
    pieces = re.split(r"(%[s%])", template)
    given = values if isinstance(values, tuple) else (values,)
    if any("%" in piece for piece in pieces[::2]) or pieces.count("%s") != len(given):
        return traced_through(lambda held: str.__mod__(template, held), values, template)
    left = iter(given)
    return joined(str(next(left)) if piece == "%s" else "%" if piece == "%%" else piece for piece in pieces)


def json_text(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, **options: Any
) -> str:
    """JSON of ``value`` as transformers writes it into templates; the texts in it stay traced."""

    def write(held: Any) -> str:
        return json.dumps(held, ensure_ascii=ensure_ascii, indent=indent, separators=separators, **options)

    return traced_through(write, value, change=lambda text: _escaped(text, ensure_ascii))


def traced_through(
    write: Callable[[Any], str], value: Any, template: str = "", change: Callable[[Traced], Traced] = lambda text: text
) -> str:
    """The text that ``write`` makes from a value, in which the texts of the value stay traced.

    Args:
        template: the pattern into which ``write`` inserts the texts, if any.
        change: the change that ``write`` makes to each text, such as escaping.

    Raises:
        ValueError: the template comes from a message itself.
    """
    if isinstance(template, Traced) and any(mark.message is not None for _, mark in template.spans):
        raise ValueError("the text of a message is taken as a pattern, into which others are written")
    found: list[Traced] = []
    plain, name = write(value), "@"
    while name in plain:
        name += "@"

    def held(inner: Any) -> Any:
        if isinstance(inner, Traced):
            found.append(inner)
            return f"{name}{len(found) - 1}{name}"
        if isinstance(inner, dict):
            return {key: held(one) for key, one in inner.items()}
        if isinstance(inner, list | tuple):
            return type(inner)(held(one) for one in inner) if type(inner) in (list, tuple) else [*map(held, inner)]
        return inner

    pieces = re.split(f"{name}(\\d+){name}", write(held(value)))
    return joined(change(found[int(piece)]) if number % 2 else piece for number, piece in enumerate(pieces))


def _escaped(text: Traced, ensure_ascii: bool) -> Traced:
    parts, place = [], 0
    for size, mark in text.spans:
        part = json.dumps(str.__getitem__(text, slice(place, place + size)), ensure_ascii=ensure_ascii)[1:-1]
        parts.append(_marked(part, mark))
        place += size
    return joined(parts)


def _marked(text: str, mark: Mark) -> Traced:
    return Traced(str.__str__(text), [(len(text), mark)])


def _cut(spans: Iterable[Span], start: int, stop: int) -> Iterator[Span]:
    place = 0
    for size, mark in spans:
        if place >= stop:
            return
        first, last = max(place, start), min(place + size, stop)
        if first < last:
            yield last - first, mark
        place += size


def _merged(spans: Iterable[Span]) -> Iterator[Span]:
    """``spans`` without empty ones, and neighbours with one mark as one."""
    count, before = 0, PLAIN
    for size, mark in spans:
        if size and mark != before:
            if count:
                yield count, before
            count, before = 0, mark
        count += size
    if count:
        yield count, before
