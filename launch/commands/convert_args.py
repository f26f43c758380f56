"""``trireme convert-args``: convert arguments or configuration files of other training tools into a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..command import Command

TOOLS = ("transformers", "accelerate", "deepspeed", "axolotl")

EXAMPLES = """examples:
  trireme convert-args training_args.json my/recipe.yaml
  trireme convert-args axolotl.yaml my/recipe.yaml --nproc 8
"""
DESCRIPTION = (
    "Make a recipe of the arguments of transformers' Trainer (YAML or JSON), of a file of accelerate config, of a JSON "
    "of DeepSpeed, or of an axolotl file, and list the arguments that could not be converted."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="YAML or JSON file with the arguments")
    parser.add_argument("out", metavar="OUT", nargs="?", help="recipe to write (default: print it)")
    parser.add_argument(
        "--tool", choices=TOOLS, help="tool that the file was written for (default: recognised by the arguments' names)"
    )
    parser.add_argument("--nproc", type=int, help="data ranks of the run (default: as in the file, or 1)")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError
    from ...trainer.folders import check_new_file
    from ..convert.convert_arguments import converted_soundly

    if options.nproc is not None and options.nproc < 1:
        raise UserError(Problem("--nproc", "is below 1", "give the number of data ranks", options.nproc))
    if options.force and options.out is None:
        raise UserError(
            Problem("--force", "replaces an existing OUT, but OUT is not given", "name OUT, or leave --force out")
        )
    out = None if options.out is None else check_new_file(options.out, "OUT", "recipe.yaml")
    if out is not None and out.suffix not in (".yaml", ".yml"):
        raise UserError(Problem("OUT", "is not a name of a recipe", f"end it with .yaml: {out}.yaml", str(out)))
    if out is not None and out.exists() and not options.force:
        raise UserError(Problem("OUT", "exists already", "give another name, or --force to replace it", str(out)))
    draft, tool = converted_soundly(options.file, options.tool, options.nproc)
    ranks = f" --nproc {draft.ranks}" if draft.ranks > 1 else ""
    text = draft.text(str(options.file), f"trireme train {out or 'RECIPE.yaml'}{ranks}")
    if out is None:
        print(text, end="")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(Problem("OUT", f"cannot be written: {error.strerror}", "give another path", str(out))) from None
    taken = len(draft.values) + sum(map(len, draft.choices.values()))
    print(f"{out}: {taken} settings of {tool} taken over")
    for setting, why in draft.chosen.items():
        print(f"  chosen: {setting}   {why}")
    for name, (_, why) in draft.left.items():
        print(f"  not taken over: {name}   {why}")
    print(f"next: trireme check {out}{ranks}")


COMMAND = Command(
    "convert-args",
    "FILE [OUT]",
    "make a recipe of another tool's arguments",
    run,
    arguments,
    description=DESCRIPTION,
    examples=EXAMPLES,
)
