"""``trireme keys``: list the keys of a recipe with their type, default and meaning."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  trireme keys trainer
  trireme keys optimizer.lr
  trireme keys plan.fsdp
  trireme keys --markdown > keys.md
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="a key, or the beginning of keys")
    parser.add_argument("--markdown", action="store_true", help="print all keys in the form of docs/keys.md")


def run(options: argparse.Namespace) -> None:
    from ...configs.key_list import keys, keys_page, keys_text, unknown_prefix
    from ...errors import UserError

    if options.markdown:
        print(keys_page(), end="")
        return
    found = keys(options.prefix)
    if not found:
        raise UserError(unknown_prefix(options.prefix))
    print(keys_text(found), end="")


COMMAND = Command(
    "keys",
    "[PREFIX]",
    "list keys of a recipe: type, default, meaning",
    run,
    arguments,
    description="List the keys of a recipe with their type, default and meaning.",
    examples=EXAMPLES,
)
