"""Errors of Hydra, OmegaConf and YAML as problems that a person can mend."""

from __future__ import annotations

import re

from ..configs.values import did_you_mean
from ..errors import Problem


def explain(error: Exception) -> Problem | None:
    """The problem behind an exception of composition, or ``None`` when it is not the user's."""
    import yaml
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, yaml.MarkedYAMLError):
        return _yaml(error)
    if isinstance(error, yaml.YAMLError):
        return Problem("recipe", f"is not YAML: {error}")
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, OverrideParseException):
        return Problem(error.override, str(error).splitlines()[0], "write key=value")
    if isinstance(error, OmegaConfBaseException):
        return Problem(error.full_key or "recipe", (error.msg or str(error)).splitlines()[0])
    if isinstance(error, HydraException):
        deepest = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
        return explain(deepest) if deepest else Problem("recipe", " ".join(str(error).split()))
    if isinstance(error, OSError):
        return Problem(str(error.filename or "recipe"), f"cannot be read or written: {error.strerror or error}")
    return None


def _yaml(error: object) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    why = ", ".join(part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part)
    where = f"{mark.name.strip('<>')}:{mark.line + 1}:{mark.column + 1}" if mark else "recipe"
    return Problem(where, f"is not YAML: {why}", "correct this line or the one above it")


def _missing(error: object) -> Problem:
    wanted = str(getattr(error, "missing_cfg_file", "") or "")
    options = [str(option) for option in getattr(error, "options", None) or []]
    group, _, option = wanted.strip("/").rpartition("/")
    by = re.search(r"In '([^']+)'", str(error))
    why = "there is no such configuration" + (f" (asked for in {by[1]})" if by else "")
    return Problem(group or "defaults", why, did_you_mean(option, options), option or wanted)
