"""Make JSON schemas of the tools in a chat. A recipe gives each tool as a schema or as a Python function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....errors import Problem, UserError
from ...component import locate
from .chat_config import KEY


def tool_schemas(tools: Sequence[Any], field: str = f"{KEY}.tools") -> list[dict[str, Any]]:
    """JSON schemas of tools.

    Args:
        tools: schemas, or dotted paths of functions.
        field: the key that names them.

    Raises:
        UserError: a function cannot be imported, or lacks type hints or a docstring.
    """
    return [tool if isinstance(tool, dict) else _of_function(tool, field) for tool in tools]


def _of_function(path: str, field: str) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        function = locate(path)
    except ImportError as error:
        fix = "write the dotted path of a function, as mine.tools.weather, or a JSON schema"
        raise UserError(Problem(field, f"cannot be imported: {error}", fix, path)) from error
    try:
        return get_json_schema(function)
    except Exception as error:  # of several types of transformers' own
        fix = "give every argument a type hint and a line under Args: in the docstring, or write its JSON schema"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(Problem(field, f"makes no JSON schema: {reason}", fix, path)) from error
