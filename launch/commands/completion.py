"""``trireme completion``: print a script for tab completion."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  eval "$(trireme completion bash)"
  trireme completion fish > ~/.config/fish/completions/trireme.fish
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(options: argparse.Namespace) -> None:
    from ..complete_words import script

    print(script(options.shell), end="")


COMMAND = Command(
    "completion", "SHELL", "print a script for tab completion of your shell", run, arguments, examples=EXAMPLES
)
