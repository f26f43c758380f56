"""Find the columns that a task's ``Samples`` class needs. trireme's own classes are not imported for this, since that
would take seconds.
"""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path

from ..component import Component, locate


def wanted_columns(task: Component | None) -> dict[str, bool] | None:
    """Columns by the names that the task uses -> whether every row must have it; None if they are not known.

    Samples of trireme are read as text, since their modules import torch. Those of the user are imported.
    """
    try:
        path = getattr(locate(task["_target_"]), "samples", None) if task else None
        if not isinstance(path, str):
            return None
        if not path.startswith("trireme."):
            return dict(locate(path).columns)
        module, _, name = path.rpartition(".")
        spec = find_spec(module)
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8")) if spec and spec.origin else ast.Module([], [])
        node = _columns({node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}, name)
        return _value(node, tree, module)
    except Exception:  # what is wrong with a task or its samples is reported by their own checks
        return None


def _columns(classes: dict[str, ast.ClassDef], name: str) -> ast.expr | None:
    """The expression assigned to ``columns`` in the class, or in a class that it inherits from."""
    if name not in classes:
        return None
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "columns":
            return node.value
    bases = (base.id for base in classes[name].bases if isinstance(base, ast.Name))
    return next((found for base in bases if (found := _columns(classes, base)) is not None), None)


def _value(node: ast.expr | None, tree: ast.Module, module: str) -> dict[str, bool] | None:
    """The value of a literal, or of a name that ``tree`` imports from a module; such modules import quickly."""
    if not isinstance(node, ast.Name):
        return None if node is None else ast.literal_eval(node)
    for line in tree.body:
        if isinstance(line, ast.ImportFrom) and any(each.name == node.id for each in line.names):
            source = resolve_name("." * line.level + (line.module or ""), module.rpartition(".")[0])
            return dict(getattr(import_module(source), node.id))
    return None
