"""Translate errors of Hydra, OmegaConf and YAML into messages with the recipe key, the reason and a fix."""

from __future__ import annotations

import re

from ..configs.values import did_you_mean, nearest
from ..errors import Problem
from .find_recipes import PACKAGE, list_recipes

GROUPS = sorted(folder.name for folder in (PACKAGE / "configs").iterdir() if any(folder.glob("*.yaml")))

UNKNOWN = "recipe"
"""Field of a problem if the library does not name the key."""
KINDS = {"Dict": "a mapping of keys", "List": "a list"}
"""Kinds of configurations of OmegaConf, in words."""
HERE = "correct this line or the one above it"
"""Fix of a syntax error, which is often noticed a line late."""
LOOK = "correct it in the recipe, or in a file that the recipe names; see docs/recipes.md"
"""Fix of an error of Hydra or OmegaConf that has no words of its own here."""
ADVICE = re.compile(
    r"^(to append|either remove|or add|set the environment|set env|at hydra|full_key|object_type)", re.I
)
"""Beginnings of lines with Hydra's own advice, which does not hold here."""


def explain(error: BaseException) -> Problem:
    """The problem behind an exception that was raised while a recipe was composed."""
    import yaml
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, yaml.YAMLError):
        return yaml_problem(error)
    if isinstance(error, UnicodeDecodeError):
        why = f"names a file that is not text in UTF-8 (byte 0x{error.object[error.start]:02x})"
        return Problem(UNKNOWN, why, "save it as UTF-8")
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, OverrideParseException):
        return Problem(error.override, _plain(error), "write key=value")
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error)
    if isinstance(error, HydraException):
        deepest = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
        return explain(deepest) if deepest else _hydra(error)
    if isinstance(error, OSError):
        why = f"cannot be read or written: {error.strerror or error}"
        return Problem(str(error.filename or UNKNOWN), why, "give a path that you can read and write")
    if isinstance(error, RecursionError):
        return Problem(
            UNKNOWN,
            "refers to itself without end",
            "remove the cycle: of recipes that build on each other, of interpolations, or of anchors",
        )
    return Problem(UNKNOWN, f"cannot be composed: {_plain(error)}", LOOK)


def yaml_problem(error: object, file: str = "", text: str = "") -> Problem:
    """The place where a file is not valid YAML, with the usual fix.

    Args:
        text: content of the file; it gives the line of a character that YAML does not allow.
    """
    import yaml

    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        where = f"{file}:{line}:{column}" if text else file or UNKNOWN
        return Problem(where, f"is not YAML: the character U+{error.character:04X} is not allowed", "remove it")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    why = ", ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    name = file or (mark.name.strip("<>") if mark else UNKNOWN)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    fix = "indent with spaces, not with tabs" if "'\\t'" in why else HERE
    return Problem(where, f"is not YAML: {why}", fix)


def _missing(error: object) -> Problem:
    wanted = str(getattr(error, "missing_cfg_file", "") or "")
    options = [str(option) for option in getattr(error, "options", None) or []]
    group, _, option = wanted.strip("/").rpartition("/")
    if group in GROUPS and not options:
        options = sorted(file.stem for file in (PACKAGE / "configs" / group).glob("*.yaml"))
    by = re.search(r"In '([^']+)'", str(error))
    folder = by[1].rpartition("/")[0] if by else ""
    for name in (wanted.strip("/").removeprefix(f"{folder}/"), wanted.strip("/")) if group and not options else ():
        if near := nearest(name, [recipe for recipe, _ in list_recipes()], 0.75):
            why = "there is neither a choice nor a recipe of this name"
            return Problem("defaults", why, f"did you mean {near}@_global_?", name)
    if group and not options:
        near = nearest(group, GROUPS)
        why, fix = "there is no such group", f"did you mean /{near}?" if near else f"known here: {', '.join(GROUPS)}"
        return Problem("defaults", why, fix, f"/{group}: {option}")
    options = options or ["base"]
    why = "there is no such configuration" + (
        f" (asked for in {by[1]})" if by and by[1] != "base" else ""
    )  # its own choices all exist
    return Problem(group or "defaults", why, did_you_mean(option, options), option or wanted)


def _omegaconf(error: object) -> Problem:
    from omegaconf import errors

    key, why = getattr(error, "full_key", None) or UNKNOWN, _plain(error)
    if isinstance(error, errors.InterpolationKeyError):
        name = re.search(r"'([^']+)' not found", why)
        named = f" ({name[1]})" if name else ""
        return Problem(key, f"refers to a key that does not exist{named}", "write the full path: ${part.key}")
    if isinstance(error, errors.InterpolationToMissingValueError):
        return Problem(key, "refers to a key that has no value yet", "set that key, or write a value here")
    variable = re.search(r"Environment variable '([^']+)' not found", why)
    if variable:
        fix = f"set {variable[1]}, or give a default: ${{oc.env:{variable[1]},value}}"
        return Problem(key, f"needs the environment variable {variable[1]}, which is not set", fix)
    if found := re.search(r"hydra has no key ([^'\"]+)", why):
        return Problem(key, f"refers to hydra:{found[1]}, which does not exist", "see its keys: --cfg hydra")
    if found := re.search(r"hydra has no value of ([^'\"]+)", why):
        where = " outside of a sweep" if found[1].startswith("job.") else ""
        return Problem(key, f"refers to hydra:{found[1]}, which has no value{where}", "write a value here")
    if isinstance(error, errors.UnsupportedInterpolationType):
        known = "known are ${part.key}, ${oc.env:NAME}, ${now:%Y-%m-%d} and ${hydra:job.config_name}"
        return Problem(key, f"cannot be resolved: {why}", known)
    if isinstance(error, errors.GrammarParseError):
        return Problem(key, "holds an interpolation that cannot be read", "write ${part.key}, or \\${ for a plain ${")
    if isinstance(error, errors.InterpolationResolutionError):
        circle = "Recursi" in why or "recursi" in why
        why = "refers to itself" if circle else f"cannot be resolved: {why}"
        return Problem(key, why, "write a value, or the path of another key")
    if found := re.search(r"annot merge (\w+)Config with (\w+)Config", why):
        there, given = (KINDS.get(kind, kind) for kind in found.groups())
        return Problem(key, f"is {there}, and {given} was given", f"write {there}")
    return Problem(key, why, LOOK)


def _hydra(error: BaseException) -> Problem:
    text = " ".join(str(error).split())
    if found := re.search(r"rror resolving interpolation '(.*)', possible interpolation keys: (.*)", text):
        return _unresolved_choice(found[1], found[2].split(", "))
    if found := re.search(r"Could not delete from config\. '([^']+)' does not exist", text):
        return Problem(found[1], "cannot be left out: there is no such key", "see the recipe's keys: --cfg job")
    if found := re.search(r"Could not delete from config\. The value of '?([\w.]+)'? is (.*?) and not (.*)\.$", text):
        return Problem(found[1], f"is {found[2]}, not {found[3]}", f"write ~{found[1]}")
    if found := re.search(r"Could not (?:override|delete|add) '([^'=]+)(?:=[^']*)?'", text):
        why = "is not among the choices in the recipe's defaults, so it cannot be replaced"
        fix = f"add it to the recipe:  defaults: [..., /{found[1].partition('@')[0].strip('/')}: ...]"
        return Problem(found[1], why, fix)
    if found := re.search(r"(\S+) appears more than once in the final defaults list", text):
        return _twice(found[1])
    if found := re.search(r"[Mm]ultiple values for (\S+?)\. To override a value use 'override \S+ (\S+)'", text):
        return _twice(found[1], found[2])
    if found := re.search(r"You must specify '([^']+)'", text):
        return Problem(found[1], "must be chosen", f"write {found[1]}=...")
    if found := re.search(
        r"In '([^']+)': \w+ raised while composing config: (.*?)(?: full_key: ?(\S*) object_type.*)?$", text
    ):
        return Problem(found[3] or UNKNOWN, f"{_plain(found[2])} (in {found[1]})", LOOK)
    if found := re.search(r"In '([^']+)':? (.*)", text):
        return Problem("defaults", f"{_plain(found[2])} (in {found[1]})", LOOK)
    return Problem(UNKNOWN, _plain(error), LOOK)


def _unresolved_choice(written: str, parts: list[str]) -> Problem:
    """The problem of an interpolation in a list of defaults, which is resolved before there are keys."""
    if variable := re.search(r"\$\{oc\.env:([^,}]+)\}", written):
        return needs_variable("defaults", variable[1], written)
    why = "cannot be resolved: a list of defaults knows only the choices that it makes itself, not the recipe's keys"
    fix = f"name a part, such as ${{{'model' if 'model' in parts else parts[0]}}} (here: {', '.join(sorted(parts))})"
    return Problem("defaults", why, fix, written)


def needs_variable(group: str, variable: str, written: str) -> Problem:
    """The problem of a choice that an unset environment variable is to make."""
    fix = f"set {variable}, or give a default: ${{oc.env:{variable},NAME}}"
    return Problem(group, f"needs the environment variable {variable}, which is not set", fix, written)


def _twice(group: str, option: str = "...") -> Problem:
    group = group.strip("/'").partition("@")[0]
    why = f"choose {group} a second time: /base, or a file that the recipe builds on, has chosen it already"
    return Problem("defaults", why, f"replace that choice: `- override /{group}: {option}`")


def _plain(error: object) -> str:
    """The first line of a message that is not advice in the library's own terms."""
    lines = [line.strip() for line in (getattr(error, "msg", None) or str(error)).splitlines()]
    kept = [line for line in lines if line and not ADVICE.match(line)]
    text = kept[0] if kept else type(error).__name__
    return text[0].lower() + text[1:]
