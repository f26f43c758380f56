"""Explain mistakes on a command line: turn the errors of argparse, and words that argparse does not recognise, into
messages that name the argument, the reason and the fix.
"""

from __future__ import annotations

import argparse
import re
from ast import literal_eval
from collections.abc import Sequence

from ..configs.names_of_other_tools import find
from ..configs.values import did_you_mean, nearest
from ..errors import Problem

OF_HYDRA = {
    "--config-dir": "write --recipe-dir DIR",
    "--config-path": "name the file of the recipe: {prog} DIR/NAME.yaml",
    "--config-name": "name the recipe first: {prog} NAME",
    "--run": "leave it out: trireme train RECIPE runs it, and -m a sweep",
    "--experimental-rerun": "run the recipe that a run has kept: trireme train RUN/recipe.yaml",
    "--shell-completion": "see: trireme completion --help",
    "--hydra-help": "see: {prog} --help; keys: trireme keys",
    "--version": "write: trireme --version",
}
"""Hydra's flags that no command has -> the equivalent here."""
SHORT = {
    "-cd": "--config-dir",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-r": "--run",
    "-sc": "--shell-completion",
}
"""Short forms of these flags."""
NUMBERS = {"int": "a whole number", "float": "a number"}
"""Types of arguments, in words."""


def problems_of_message(message: str, parser: argparse.ArgumentParser) -> list[Problem]:
    """The problems behind a message of argparse."""
    about, _, names = message.partition("required: ")
    if about == "the following arguments are ":
        return [Problem(name, "is missing", _example(name, parser)) for name in names.split(", ")]
    if found := re.fullmatch(r"argument (\S+): (.*)", message, re.DOTALL):
        return [_wrong_value(found[1], found[2], parser)]
    return [Problem(parser.prog, message, _help(parser))]


def problems_of_words(words: Sequence[str], parser: argparse.ArgumentParser) -> list[Problem]:
    """The problems of words that no argument takes; a word after an unknown option is the value of that option.

    Where overrides are taken, argparse leaves those over that stand behind an unknown option; they are right.
    """
    problems, overrides = [], "key=value" in parser.format_usage() and any(word.startswith("-") for word in words)
    for word, before, after in zip(words, ["", *words], [*words[1:], ""], strict=False):
        if word.startswith("-"):
            name, _, value = word.partition("=")
            follows = "" if after.startswith("-") or (overrides and "=" in after) else after
            problems.append(_unknown_option(name, value or follows, parser))
        elif not overrides and (not before.startswith("-") or "=" in before):
            problems.append(Problem(word, f"is one argument more than {parser.prog} takes", _help(parser)))
    return problems


def _unknown_option(name: str, value: str, parser: argparse.ArgumentParser) -> Problem:
    """The problem with the nearest option as its fix, or with the key for another tool's option."""
    takes_keys = "key=value" in parser.format_usage()
    if takes_keys and (found := OF_HYDRA.get(SHORT.get(name, name))):
        return Problem(name, "is a flag of Hydra's programs", found.format(prog=parser.prog), value or None)
    if command := _command_with(name):
        return Problem(name, f"is an option of trireme {command}, not of {parser.prog}", "leave it out", value or None)
    fix = "leave it out; values of the recipe are written key=value" if takes_keys else _help(parser)
    if near := nearest(name, _options(parser), 0.8):
        fix = f"did you mean {near}?"
    elif takes_keys and name.startswith("--") and (other := find(name)):
        fix = other.fix(value or None)
    return Problem(name, f"is not an option of {parser.prog}", fix, value or None)


def _wrong_value(name: str, why: str, parser: argparse.ArgumentParser) -> Problem:
    """The problem of an argument's value, from what argparse or the argument's type says of it."""
    action = next(each for each in parser._actions if name in _names(each))
    field = next((each for each in action.option_strings if each.startswith("--")), name)
    if found := re.match(r"invalid choice: (.*) \(choose from", why):
        fix = did_you_mean(literal_eval(found[1]), [str(each) for each in action.choices or ()])
        value = literal_eval(found[1])
        if field == "--cfg" and f"-c{value}" in SHORT:  # argparse reads -cd as -c d
            return _unknown_option(f"-c{value}", "", parser)
        if action.nargs == "?" and "=" in str(value):  # an override behind an option that may stand alone
            return Problem(field, "takes the next word for its value", f"write {field}={action.const}", value)
        return Problem(field, "there is no such choice", fix, value)
    if found := re.fullmatch(r"invalid (\w+) value: (.*)", why):
        kind = NUMBERS.get(found[1], f"a {found[1]}")
        return Problem(field, f"is not {kind}", f"write {kind}", literal_eval(found[2]))
    if why.startswith("expected"):
        choices = " or ".join(map(str, action.choices or ()))
        return Problem(field, "has no value", f"write {field} {action.metavar or choices or 'VALUE'}")
    if found := re.fullmatch(r"ignored explicit argument (.*)", why):
        return Problem(field, "takes no value", f"write {field} alone", literal_eval(found[1]))
    if found := re.fullmatch(r"('.*'|\".*\") (is .*); (.*)", why):  # of a type in recipe_arguments.py
        return Problem(field, found[2], found[3], literal_eval(found[1]))
    return Problem(field, why, _help(parser))


def _names(action: argparse.Action) -> Sequence[str | tuple[str, ...] | None]:
    """Names that argparse may use for an argument in a message."""
    return ["/".join(action.option_strings)] if action.option_strings else [action.metavar, action.dest]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Long options of a command that its help shows."""
    return re.findall(r"--[a-z][\w-]*", parser.format_usage())


def _command_with(option: str) -> str:
    """A command that reads a recipe and has this option; empty if there is none."""
    from .recipe_arguments import add_evaluation_arguments, add_training_arguments

    for command, add in (("train", add_training_arguments), ("evaluate", add_evaluation_arguments)):
        parser = argparse.ArgumentParser(add_help=False)
        add(parser)
        if option in _options(parser):
            return command
    return ""


def _example(name: str, parser: argparse.ArgumentParser) -> str:
    """The fix for an argument that is missing."""
    if name == "RECIPE":
        return "name a .yaml file, or one of: trireme recipes"
    lines = [line.strip() for line in (parser.epilog or "").splitlines()]
    example = next((line for line in lines if line.startswith("trireme")), "")
    return f"give it, as in: {example}" if example else _help(parser)


def _help(parser: argparse.ArgumentParser) -> str:
    return f"see: {parser.prog} --help"
