"""What a command of ``trireme`` consists of, and how it is called.

A command is one small file in ``commands/``: its name, one line of help, its arguments, and what it runs. Nothing heavy
is imported before it runs.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """For commands that take none."""


@dataclass(frozen=True)
class Command:
    """One command, as ``trireme --help`` lists it."""

    name: str
    usage: str
    """Its arguments in short."""
    help: str
    """What it does, in one line."""
    run: Callable[[argparse.Namespace], Any]
    """Do it; what it returns is the exit code, None: 0. Raises UserError for what the user can mend."""
    arguments: Callable[[argparse.ArgumentParser], None] = no_arguments
    """Add its arguments to a parser."""
    description: str = ""
    """Opens its own help; empty: ``help`` as a sentence."""
    examples: str = ""
    """Ends its own help."""
    may_be_rank: bool = False
    """It may run in a process that a launcher has started as one of several."""

    def parser(self, prog: str | None = None) -> argparse.ArgumentParser:
        parser = Parser(
            prog or f"trireme {self.name}",
            description=textwrap.fill(self.description or f"{self.help[0].upper()}{self.help[1:]}.", 80),
            epilog=self.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.arguments(parser)
        return parser

    def call(self, given: Sequence[str] | None = None, prog: str | None = None) -> int:
        """Parse, run, report; returns the exit code.

        Args:
            given: words of the command line; None: those of this process.
            prog: how this was called, if not by the name of the command.
        """
        words = list(sys.argv[1:] if given is None else given)
        codes: list[int | None] = []

        def run() -> None:
            codes.append(self.run(self.parser(prog).parse_intermixed_args(words)))

        if self.may_be_rank:
            from .enter import enter

            code = enter(run, "--debug" in words)
        else:
            from .error_report import guard

            code = guard(run, "--debug" in words)
        return code or next(iter(codes), None) or 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong as argparse does, and what to write; of several ranks only one says it."""

    def error(self, message: str) -> NoReturn:
        from .elastic import launched

        message = "\n".join([message, *self._hints(message)])
        if launched():
            from ..errors import UserError

            raise UserError(f"{self.prog}: {message}")
        super().error(message)

    def _hints(self, message: str) -> list[str]:
        """Of options that do not exist: the nearest, or what another tool's option is here."""
        if message == "the following arguments are required: RECIPE":
            return ["  see: trireme recipes"]
        if not message.startswith("unrecognized arguments: "):
            return []
        from ..configs.other_names import find
        from ..configs.values import nearest

        own = re.findall(r"--[a-z][\w-]*", self.format_usage())
        words = message.partition(": ")[2].split()
        hints = []
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, _, value = word.partition("=")
            if not name.startswith("--"):
                continue
            value = value or ("" if following.startswith("-") else following)
            near, other = nearest(name, own, 0.8), find(name)
            fix = f"did you mean {near}?" if near else (other.fix(value or None) if other else "write key=value")
            hints.append(f"  {name}: {fix}")
        return hints
