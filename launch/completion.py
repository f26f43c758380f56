"""Tab completion: commands, recipe names, groups and their options, keys and values.

The shell calls ``trireme __complete WORD ...`` with the words typed so far; the last one, maybe empty, is completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

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
WITH_RECIPE = ("train", "launch", "check", "batch-size", "plans", "evaluate")

OPTIONS = ("--nproc", "--recipe-dir", "--debug", "--help")
"""Options of every command that takes a recipe."""
TRAINING = ("--accelerate-config", "--resume", "--fresh", "--max-restarts", "--cfg", "--info", "--multirun")
OWN_OPTIONS = {
    "train": TRAINING,
    "launch": (*TRAINING, "--dry-run"),
    "check": ("--accelerate-config",),
    "evaluate": ("--checkpoint", "--ema", "--json"),
    "logs": ("--follow", "--rank", "--lines", "--help"),
    "cancel": ("--now", "--wait", "--help"),
    "doctor": ("--json", "--debug", "--help"),
}
WITH_VALUE = (
    "--accelerate-config", "--recipe-dir", "--nproc", "--resume", "--max-restarts", "--cfg", "--info", "--package",
    "--checkpoint",
)  # fmt: skip


def script(shell: str) -> str:
    """The script that ``eval "$(trireme completion SHELL)"`` runs."""
    return SCRIPTS[shell]


def complete(words: Sequence[str], commands: Iterable[str]) -> list[str]:
    """Completions of the last of ``words``."""
    *before, current = words or [""]
    if not before:
        return [command for command in commands if command.startswith(current) and not command.startswith("_")]
    reads_recipe = before[0] in WITH_RECIPE
    if current.startswith("-"):
        options = [*(OPTIONS if reads_recipe else ()), *OWN_OPTIONS.get(before[0], ())]
        return [option for option in options if option.startswith(current)]
    if not reads_recipe:
        return []  # the shell completes names of folders
    dirs, positional = _split(before[1:])
    try:
        if not positional:
            return [name for name, _ in list_recipes(dirs) if name.startswith(current)]
        return _overrides(positional[0], positional[1:], current, dirs)
    except Exception:  # a recipe that cannot be composed gives no completions, rather than a traceback at the prompt
        return []


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(recipe folders, positional words) of a command line."""
    dirs, positional, taken = [], [], ""
    for word in words:
        if taken:
            dirs += [word] if taken == "--recipe-dir" else []
            taken = ""
        elif word in WITH_VALUE:
            taken = word
        elif not word.startswith("-"):
            positional.append(word)
    return dirs, positional


def _overrides(recipe: str, before: Sequence[str], current: str, dirs: Sequence[str]) -> list[str]:
    from .completion_cache import matches, tree_of

    key, equals, value = current.partition("=")
    if equals and value.startswith((".", "/")):  # a file
        found = sorted(str(path) for path in Path(value).parent.glob(f"{Path(value).name}*"))
        return [f"{key}={path}" for path in found]
    return matches(tree_of(find_recipe(recipe, dirs), before, dirs), current)
