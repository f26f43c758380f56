"""The class of a ``trireme`` subcommand, and its argument parser.

Every subcommand is a small file in ``commands/`` with a name, one line of help, arguments, and the function that it
runs. Heavy imports happen inside that function, so that help is instant.
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
            given: words of the command line; None takes those of this process.
            prog: name of the program in messages; None takes ``trireme COMMAND``.
        """
        words = list(sys.argv[1:] if given is None else given)
        codes: list[int | None] = []

        def run() -> None:
            codes.append(self.run(self.parser(prog).parse_intermixed_args(words)))

        if self.may_be_rank:
            from .start_process import enter

            code = enter(run, "--debug" in words)
        else:
            from .error_report import guard

            code = guard(run, "--debug" in words)
        return code or next(iter(codes), None) or 0


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest a fix, and which reports an error once for all ranks."""

    def error(self, message: str) -> NoReturn:
        from .elastic import launched

        message = "\n".join([message, *self._hints(message)])
        if launched():
            from ..errors import UserError

            raise UserError(f"{self.prog}: {message}")
        super().error(message)

    def _hints(self, message: str) -> list[str]:
        """For each unknown option a suggestion: the nearest option, or the key for another tool's option."""
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
            command = _command_with(name)
            usual = "write key=value" if "key=value" in self.format_usage() else f"see: {self.prog} --help"
            fix = f"did you mean {near}?" if near else (other.fix(value or None) if other else usual)
            hints.append(f"  {name}: {f'is an option of trireme {command}' if command else fix}")
        return hints


def _command_with(option: str) -> str:
    """A command that reads a recipe and has this option; empty if there is none."""
    from .recipe_arguments import add_evaluation_arguments, add_training_arguments

    for command, add in (("train", add_training_arguments), ("evaluate", add_evaluation_arguments)):
        parser = argparse.ArgumentParser(add_help=False)
        add(parser)
        if option in re.findall(r"--[a-z][\w-]*", parser.format_usage()):
            return command
    return ""
