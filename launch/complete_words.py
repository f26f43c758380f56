"""Shell tab completion: subcommands and their options, recipe names, configuration groups, keys and values.

Options are read from each subcommand's argument parser, so a new option is completed without an entry here. The shell
calls ``trireme __complete WORD ...`` with the words typed so far, and the last word is completed. The last word may be
empty.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .command import Command
from .find_recipes import find_recipe, list_recipes

SCRIPTS = {
    "bash": """\
_trireme() {
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}") line="${COMP_LINE:0:COMP_POINT}"
    read -r -a words <<< "${line#* }"
    [[ "$line" == *" " ]] && words+=("")
    local current="${words[-1]}" word
    COMPREPLY=()
    while IFS= read -r word; do
        # bash breaks words at "=", so what stands before it is taken off again
        [[ "$current" == *=* ]] && word="${word#"${current%%=*}="}"
        [[ -n "$word" ]] && COMPREPLY+=("$word")
    done < <(trireme __complete "${words[@]}" 2>/dev/null)
}
complete -o nospace -o default -F _trireme trireme
""",
    "zsh": """\
#compdef trireme
_trireme() {
    local -a found
    found=("${(@f)$(trireme __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    compadd -S '' -- ${found:#}
}
compdef _trireme trireme
""",
    "fish": """\
function __trireme_complete
    set -l words (commandline -opc) (commandline -ct)
    trireme __complete $words[2..-1] 2>/dev/null
end
complete -c trireme -f -a '(__trireme_complete)'
""",
}


def script(shell: str) -> str:
    """The script that ``eval "$(trireme completion SHELL)"`` runs."""
    return SCRIPTS[shell]


@dataclass
class Typed:
    """The words after the command's name, before the word that is completed, sorted by what they are for."""

    positional: list[str] = field(default_factory=list)
    recipe_dirs: list[str] = field(default_factory=list)
    waiting: argparse.Action | None = None
    """The option whose value comes next; None if the last word is no such option."""


def complete(words: Sequence[str], commands: Mapping[str, Command]) -> list[str]:
    """Completions of the last of ``words``. None are given for files and folders, since the shell completes them."""
    *before, current = words or [""]
    if not before:
        return [name for name in commands if name.startswith(current) and not name.startswith("_")]
    if before[0] not in commands:
        return []
    actions = [one for one in commands[before[0]].parser()._actions if one.help != argparse.SUPPRESS]
    options = {name: one for one in actions for name in one.option_strings}
    typed = _typed(before[1:], options)
    if typed.waiting:
        found = list(map(str, typed.waiting.choices or ()))
    elif current.startswith("-"):
        found = [name for name in options if name.startswith("--")]
    else:
        return _argument([one for one in actions if not one.option_strings], typed, current)
    return [each for each in found if each.startswith(current)]


def _typed(words: Sequence[str], options: Mapping[str, argparse.Action]) -> Typed:
    typed = Typed()
    for word in words:
        if typed.waiting and not word.startswith("-"):
            if typed.waiting.dest == "recipe_dir":
                typed.recipe_dirs.append(word)
            typed.waiting = None
        elif word.startswith("-"):
            option = options.get(word)
            typed.waiting = option if option and option.nargs != 0 else None
        else:
            typed.positional.append(word)
    return typed


def _argument(arguments: Sequence[argparse.Action], typed: Typed, current: str) -> list[str]:
    """Completions of the argument that stands after those that were typed."""
    if not arguments:
        return []
    argument = arguments[min(len(typed.positional), len(arguments) - 1)]
    try:
        if argument.dest == "recipe":
            return [name for name, _ in list_recipes(typed.recipe_dirs) if name.startswith(current)]
        if argument.dest == "overrides":
            return _overrides(typed.positional[0], typed.positional[1:], current, typed.recipe_dirs)
    except Exception:  # a recipe that cannot be composed gives no completions, rather than a traceback at the prompt
        return []
    return [choice for choice in map(str, argument.choices or ()) if choice.startswith(current)]


def _overrides(recipe: str, before: Sequence[str], current: str, dirs: Sequence[str]) -> list[str]:
    from .completion_cache import matches, tree_of

    key, equals, value = current.partition("=")
    if equals and value.startswith((".", "/")):  # a file
        found = sorted(str(path) for path in Path(value).parent.glob(f"{Path(value).name}*"))
        return [f"{key}={path}" for path in found]
    return matches(tree_of(find_recipe(recipe, dirs), before, dirs), current)
