"""Error messages for users, with four parts (field, value, reason, fix), and the exceptions that carry the messages.

Every folder imports this file, so it imports nothing else of the package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LONGEST = 300
"""Characters of a value that are shown."""


def short(value: Any) -> str:
    """A value as Python writes it, its middle left out if it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[-half:]}"


@dataclass(frozen=True)
class Problem:
    """One problem of the user's input, in four parts: field, value, reason and fix."""

    field: str
    """Dotted path of the recipe key (``trainer.max_steps``), a file, or a command line option."""
    why: str
    """Reason: the part of a sentence after the field's name, such as ``is below 0``."""
    fix: str = ""
    """The remedy, as an imperative."""
    value: Any = None
    """The offending value; ``None`` is not shown."""

    def __str__(self) -> str:
        head = self.field if self.value is None else f"{self.field} = {short(self.value)}"
        lines = [head, f"  {self.why}"]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def why_no_number(value: float) -> str:
    """The reason why a number is refused: it is not finite, or does not fit into 64 bits."""
    if value != value:
        return "is not a number"
    if value in (float("inf"), float("-inf")):
        return "is infinite"
    return "is too large: numbers of a recipe lie below 2 ** 63, about 9.2e18"


def refuse(flaws: Iterable[str]) -> None:
    """Refuse the values of a dataclass for all their flaws at once, each ``field=value is below 1; do this``.

    ``configs/validate.py`` makes a problem of each line; in plain Python the dataclass raises.

    Raises:
        ValueError: there are flaws, one in each line.
    """
    lines = list(flaws)
    if lines:
        raise ValueError("\n".join(lines))


class UserError(Exception):
    """Something the user can mend: shown as one message without a traceback, exit code 2.

    Args:
        problems: every problem found, reported together. A plain string stands for a message of its own.
    """

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook shows in the place of a traceback."""
        return str(self).splitlines()


@contextmanager
def gathered_in(problems: list[Problem | str]) -> Iterator[None]:
    """Context in which a ``UserError`` adds its problems to a list, so that the next check can add its own."""
    try:
        yield
    except UserError as error:
        problems += error.problems


class ComponentFailed(Exception):
    """Code of the user's own failed while it ran: shown as one message that names it, exit code 1.

    The cause may be the network or a disk, so that a restart may help; a broken contract is a ``UserError``.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem)
