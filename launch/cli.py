"""The entry point of the command ``trireme``: finds a subcommand in ``commands/`` by its name, and runs it.

Nothing heavy is imported before a subcommand runs, so that ``--help`` is instant.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence

from ..version import __version__
from .commands.table import COMMANDS, HEADINGS

INTRODUCTION = """usage: trireme COMMAND ...      (trireme COMMAND --help: arguments and examples)

Train models from recipes; only the plan changes between one process and many.
RECIPE ... is a recipe, then key=value for whatever is to differ from it.
"""
EXAMPLES = """
examples:
  trireme train pretrain/persimmon_stdlib
  trireme train pretrain/persimmon_stdlib plan=ddp --nproc 2 run.dir=runs/two
  trireme check my/recipe.yaml trainer.global_batch_size=64 --nproc 8
  trireme generate runs/persimmon_stdlib --prompt "def main("
  trireme export runs/persimmon_stdlib exported/persimmon

options: -h, --help   --version
"""
WIDTH = 80
INDENT = 26
"""Column at which the help of a command begins."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 the user can mend it, 3 diverged, 75 left early, 130
    Ctrl-C)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("\n".join((INTRODUCTION, *_listing(), EXAMPLES)), end="")
        return 0
    if arguments[0] == "--version":
        print(f"trireme {__version__}")
        return 0
    if arguments[0] == "__complete":  # what the completion scripts call
        return _complete(arguments[1:])
    command = COMMANDS.get(arguments[0])
    return command.call(arguments[1:]) if command else _unknown(arguments[0])


def _listing() -> Iterator[str]:
    """Commands under their headings; help that is too long goes on in the next line."""
    for number, (heading, modules) in enumerate(HEADINGS.items()):
        yield f"{'' if number == 0 else chr(10)}{heading}:"
        for module in modules:
            command = module.COMMAND
            name = f"  {command.name} {command.usage}".rstrip()
            first, *rest = textwrap.wrap(command.help, WIDTH - INDENT)
            if len(name) + 2 > INDENT:
                yield name
                name = ""
            yield f"{name:<{INDENT}}{first}"
            yield from (" " * INDENT + line for line in rest)


def _unknown(name: str) -> int:
    from ..configs.values import nearest
    from ..errors import Problem
    from .error_report import USER_ERROR, show_problems

    near = nearest(name, COMMANDS)
    fix = f"did you mean {near}?" if near else "see: trireme --help"
    show_problems([Problem("COMMAND", "there is no such command", fix, name)])
    return USER_ERROR


def _complete(words: Sequence[str]) -> int:
    from .complete_words import complete

    print("\n".join(complete(words, COMMANDS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
