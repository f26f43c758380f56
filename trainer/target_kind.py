"""Before a recipe's ``_target_`` is called, check that it can make the right kind of object, such as a callback.

A mistake such as ``os.system`` in place of a callback must never run.

A class is judged by its methods, a function by the class in its return annotation. A function without an annotation is
called if it is the user's own. Such a function of Python or of a library is refused, since it was made for another use.
"""

from __future__ import annotations

import functools
import inspect
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Folders of Python's own modules and of installed packages."""


def not_made_for(
    target: Any, kind: str, methods: Iterable[str], base: str, of_libraries: bool = False
) -> tuple[str, str] | None:
    """Why a call of ``target`` would not give a component of this kind, and what to do; None if it may.

    Args:
        kind: of the component in words, such as ``callback``.
        methods: that a component of this kind has.
        base: class that the annotation of a function may name.
        of_libraries: call functions of installed packages even if they do not say what they return.
    """
    while isinstance(target, functools.partial):
        target = target.func
    own = not _is_of_python(target) and (of_libraries or not _is_installed(target))
    made = target if inspect.isclass(target) else _returned(target)
    fix = f"name a class, or a function that is annotated: def name(...) -> {base.rpartition('.')[2]}"
    if made is None:
        return None if own else (f"is a function of a library that does not say which {kind} it gives", fix)
    if all(callable(getattr(made, name, None)) for name in methods):
        return None
    if made is target:  # the constructor of an own class may set methods
        return None if own else (f"is a class of a library, but no {kind}", f"name a {kind}; see docs/extending.md")
    return f"is a function that returns {made.__name__}, not {'an' if kind[0] in 'aeiou' else 'a'} {kind}", fix


def _returned(function: Any) -> type | None:
    """The class that a function returns by its annotation; None if it does not say."""
    try:
        hint = get_type_hints(function).get("return", Any)
    except Exception:  # the annotation may use names that are only imported for type checkers
        return None
    return hint if inspect.isclass(hint) and hint not in (object, Any) else None


def _module(target: Any) -> str:
    return str(getattr(target, "__module__", None) or type(target).__module__)


def _is_of_python(target: Any) -> bool:
    return inspect.isbuiltin(target) or _module(target).partition(".")[0] in sys.stdlib_module_names


def _is_installed(target: Any) -> bool:
    file = getattr(sys.modules.get(_module(target)), "__file__", None)
    of_trireme = _module(target).partition(".")[0] == "trireme"
    return file is not None and not of_trireme and any(map(Path(file).is_relative_to, LIBRARIES))
