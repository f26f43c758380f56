"""The class of a ``trireme`` subcommand, and its argument parser.

Every subcommand is a small file in ``commands/`` with a name, one line of help, arguments, and the function that it
runs. Heavy imports happen inside that function, so that help is instant.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


def no_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: for commands without arguments."""


@dataclass(frozen=True)
class Command:
    """One command, as ``trireme --help`` lists it."""

    name: str
    usage: str
    """Summary of the arguments."""
    help: str
    """Description in one line."""
    run: Callable[[argparse.Namespace], Any]
    """Function that does the work. It returns the exit code (None means 0) and raises UserError for users' mistakes."""
    arguments: Callable[[argparse.ArgumentParser], None] = no_arguments
    """Function that adds the arguments to a parser."""
    description: str = ""
    """First paragraph of ``trireme COMMAND --help``; empty takes ``help`` as a sentence."""
    examples: str = ""
    """Last paragraph of ``trireme COMMAND --help``."""
    may_be_rank: bool = False
    """Whether the command may run in ranks that a launcher has started."""

    def parser(self, prog: str | None = None) -> Parser:
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
            given: words of the command line; None takes those of this process.
            prog: name of the program in messages; None takes ``trireme COMMAND``.
        """
        words = list(sys.argv[1:] if given is None else given)
        codes: list[int | None] = []
        from .error_report import speak_json

        speak_json(any(word.lstrip("+") == "run.log_format=json" for word in words))

        def run() -> None:
            options = self.parser(prog).parse_words(words)
            if getattr(options, "overrides", None):
                _take_last_of_each(options)
            codes.append(self.run(options))

        if self.may_be_rank:
            from .start_process import enter

            code = enter(run, "--debug" in words)
        else:
            from .error_report import guard

            code = guard(run, "--debug" in words)
        return code or next(iter(codes), None) or 0


def _take_last_of_each(options: argparse.Namespace) -> None:
    """Leave out overrides whose key a later one sets again, and say so."""
    from .overrides import last_of_each

    options.overrides, notes = last_of_each(options.overrides)
    if notes:
        from .notes import tell

        tell(notes)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are problems with a fix; of several ranks one reports them."""

    def error(self, message: str) -> NoReturn:
        from ..errors import UserError
        from .wrong_arguments import problems_of_message

        raise UserError(*problems_of_message(message, self))

    def parse_words(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments in the words of a command line.

        Raises:
            UserError: words are left over, or do not fit.
        """
        options, left = self.parse_known_intermixed_args(words)
        if left:
            from ..errors import UserError
            from .wrong_arguments import problems_of_words

            raise UserError(*problems_of_words(left, self))
        return options
