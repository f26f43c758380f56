"""Check, without importing transformers' model classes, that a model can have the head that a task needs.

Importing these classes takes seconds, so their source code is read as text instead. The check refuses a head that
transformers does not have for the architecture. It also refuses next-token prediction with an encoder: every position
of an encoder sees the following tokens, so the model would only learn to copy them.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import Problem
from .heads import HEADS
from .model_config import ModelConfig

ADVICE = "as a standalone, add `is_decoder=True"
"""Words of a warning that is in the code of transformers' encoder classes only."""


def check_head(model: ModelConfig, config: Any, head: str) -> list[Problem]:
    """Problems of a head on one of transformers' architectures.

    Args:
        config: the model's configuration.
        head: the output layer that the task asks for.
    """
    if model.own or model.architecture is not None or head not in HEADS:
        return []
    kind = model.spec.model_type
    own = [*(task for task, _ in model.spec.heads), *model.spec.label_heads]
    able = own if model.spec.classes else stock_heads(kind)
    if able and head not in able:
        whose = "trireme" if model.spec.classes else "transformers"
        why = f"asks for the head {head}, which {whose} does not have for {model.spec.title}"
        return [Problem("task", why, f"choose a task with one of its heads: {', '.join(able)}")]
    if HEADS[head].next_tokens and not getattr(config, "is_decoder", True) and _is_encoder(kind):
        return [sees_later_tokens(model.spec.title)]
    return []


def sees_later_tokens(title: str) -> Problem:
    """The refusal of an encoder that is to predict next tokens."""
    why = f"predicts next tokens, and {title} is an encoder here: each token sees those that follow, its label too"
    return Problem("task", why, "set model.config.is_decoder=true, or choose another task, such as task=masked_lm")


@cache
def stock_heads(model_type: str) -> list[str]:
    """Heads that transformers has for an architecture; none if its table cannot be read."""
    tables = _tables()
    found = []
    for name, head in HEADS.items():
        classes = tables.get(head.factory, {})
        also = tables.get(head.also, {}).get(model_type, "")
        if model_type in classes or also.endswith("ForPreTraining"):
            found.append(name)
    return found


@cache
def _tables() -> dict[str, dict[str, str]]:
    """Auto class -> architectures that it builds, each with its class."""
    source = _source("transformers.models.auto.modeling_auto")
    tree = ast.parse(source) if source else ast.Module([], [])
    names: dict[str, dict[str, str]] = {}
    mappings: dict[str, str] = {}
    factories: dict[str, dict[str, str]] = {}
    for node in tree.body:
        match node:
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("OrderedDict"), [ast.List(pairs)])):
                names[name] = {}
                for pair in pairs:
                    names[name] |= _of_other(pair, names) if isinstance(pair, ast.Starred) else _pair(pair)
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("_LazyAutoMapping"), [_, ast.Name(table)])):
                mappings[name] = table
            case ast.ClassDef(name, body=body):
                for line in body:
                    match line:
                        case ast.Assign([ast.Name("_model_mapping")], ast.Name(mapping)):
                            factories[name] = names.get(mappings.get(mapping, ""), {})
            case _:
                pass
    return factories


def _pair(pair: ast.expr) -> dict[str, str]:
    if not isinstance(pair, ast.Tuple):
        return {}
    kind, name = (ast.literal_eval(part) for part in pair.elts)
    return {kind: name if isinstance(name, str) else name[0]}


def _of_other(pairs: ast.Starred, tables: dict[str, dict[str, str]]) -> dict[str, str]:
    """The pairs of another table that a table begins with: ``*list(TABLE.items())``."""
    named = (node.id for node in ast.walk(pairs) if isinstance(node, ast.Name))
    return next((tables[name] for name in named if name in tables), {})


@cache
def _is_encoder(model_type: str) -> bool:
    name = model_type.replace("-", "_")
    return ADVICE in _source(f"transformers.models.{name}.modeling_{name}")


def _source(module: str) -> str:
    """The text of a module of transformers that is not imported; empty if there is none."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return ""
    path = Path(package.origin).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path.read_text(encoding="utf-8") if path.is_file() else ""
