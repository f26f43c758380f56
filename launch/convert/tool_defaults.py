"""Drop arguments that have transformers' default value from the list of arguments that were not converted.

A dump of ``TrainingArguments`` contains all arguments, also those that nobody has set.
"""

from __future__ import annotations

import ast
import importlib.util
from contextlib import suppress
from pathlib import Path
from typing import Any

from .recipe_draft import Draft

ACCELERATOR = {
    "split_batches": False,
    "dispatch_batches": None,
    "even_batches": True,
    "use_seedable_sampler": True,
    "non_blocking": False,
    "gradient_accumulation_kwargs": None,
    "use_configured_state": False,
}
"""Default values of ``accelerator_config``."""


def without_defaults(draft: Draft) -> None:
    """Remove arguments with transformers' own defaults from ``draft.left``; nobody has set them."""
    defaults = _defaults()
    for name, (value, _) in list(draft.left.items()):
        usual = name in defaults and value == defaults[name]
        secret = value == f"<{name.upper()}>"  # which a dump hides
        accelerator = name == "accelerator_config" and isinstance(value, dict) and value.items() <= ACCELERATOR.items()
        if usual or secret or accelerator:
            del draft.left[name]


def _defaults() -> dict[str, Any]:
    """Defaults of ``TrainingArguments`` by name, read from the source: an import would take seconds."""
    found = importlib.util.find_spec("transformers")
    assert found is not None and found.origin is not None
    tree = ast.parse((Path(found.origin).parent / "training_args.py").read_text())
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name == "TrainingArguments"]
    defaults = {}
    for each in (line for one in classes for line in one.body):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and isinstance(each.value, ast.Call):
            given = {keyword.arg: keyword.value for keyword in each.value.keywords}
            with suppress(ValueError, KeyError):  # some are made by a function
                defaults[each.target.id] = ast.literal_eval(given["default"])
    return defaults
