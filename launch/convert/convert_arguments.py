"""Convert arguments of transformers' Trainer, or a file of accelerate, DeepSpeed or axolotl, into a recipe.

Arguments are looked up in ``configs/names_of_other_tools.yaml``, the table behind docs/coming-from.md.
``argument_rules.py`` has rules for arguments whose values must be translated, not only their names. Arguments that
cannot be converted become comments in the recipe, with advice on what to do instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...configs.key_list import group_options, keys
from ...configs.names_of_other_tools import find
from ..argument_file import read_arguments
from .argument_rules import RULES, without_preset
from .batch_rules import batch, too_long
from .deepspeed_rules import MARKS as DEEPSPEED_MARKS
from .deepspeed_rules import take_deepspeed
from .fit_ranks import choose_plan, fit_batches
from .recipe_draft import Draft

Tool = Literal["transformers", "accelerate", "deepspeed", "axolotl"]
MARKS: dict[Tool, tuple[str, ...]] = {
    "accelerate": ("distributed_type", "compute_environment", "num_machines"),
    "deepspeed": DEEPSPEED_MARKS,
    "axolotl": ("base_model", "sequence_len", "micro_batch_size", "datasets"),
}
"""Names by which a file is recognised; else it is one of transformers."""
USUAL: dict[Tool, dict[str, Any]] = {
    "transformers": {
        "learning_rate": 5e-5,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_epsilon": 1e-8,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "logging_steps": 500,
        "save_steps": 500,
        "seed": 42,
    },
    "axolotl": {
        "lr_scheduler": "cosine",
        "num_epochs": 1.0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_epsilon": 1e-8,
        "sequence_len": 512,
        "sample_packing": False,
        "gradient_accumulation_steps": 1,
    },
    "accelerate": {},
    "deepspeed": {},
}
"""Defaults of the tool that differ from those here: they are written out, so that the run stays the same."""
ON = frozenset(
    (
        *("average_tokens_across_devices", "dataloader_in_order", "dataloader_pin_memory", "eval_do_concat_batches"),
        *("logging_nan_inf_filter", "remove_unused_columns", "save_safetensors"),
    )
)
"""Switches of transformers that are on by default and have no counterpart here: if one is off, it is reported."""
SAME = {
    "logging_steps": "logging_strategy",
    "save_steps": "save_strategy",
    "num_train_epochs": "max_steps",
    "gradient_accumulation_steps": "batch_size",
}
"""Argument -> another argument; if the other one is given, the default of the first does not count."""
PLAIN = re.compile(r"(?P<key>[\w.]+)=(?P<value>\[[^\]\[{]*\]|[^\s,\[]+)(?:,.*)?")
"""``how`` of a table entry that is an assignment, such as ``plan.recompute=full, or selective``."""


def converted_soundly(path: Path, tool: Tool | None = None, ranks: int | None = None) -> tuple[Draft, Tool]:
    """Like ``converted``, without values that the check of the recipe would refuse: they are listed as left."""
    from .refused_values import data_ranks, leave_refused
    from .tool_defaults import without_defaults

    draft, tool = converted(path, tool, ranks)
    given = {name.lstrip("-").replace("-", "_"): value for name, value in read_arguments(path).items()}
    machines: int = given.get("num_machines") or 1 if tool == "accelerate" else 1
    count = draft.ranks * machines if ranks is None else ranks
    choose_plan(draft, count)
    fixed = tool == "deepspeed"
    fit_batches(draft, data_ranks(draft, count), fixed)
    leave_refused(draft, given, count)
    fit_batches(draft, data_ranks(draft, count), fixed)  # it may have taken one of the sizes out
    draft.ranks = max(count // machines, 1)
    if tool == "transformers" and draft.left:
        without_defaults(draft)
    return draft, tool


def converted(path: Path, tool: Tool | None = None, ranks: int | None = None) -> tuple[Draft, Tool]:
    """The draft of a recipe, and the tool whose arguments the file has.

    Args:
        path: a YAML or JSON file with a mapping.
        tool: None recognises the tool by the arguments.
        ranks: data ranks of the run that is taken over; None takes the file's number of processes, or 1.

    Raises:
        UserError: the file cannot be read, or is no mapping.
    """
    given = read_arguments(path)
    tool = tool or _recognised(given)
    draft = Draft()
    if tool == "accelerate":
        _take_accelerate(draft, path, given)
        return draft, tool
    if tool == "deepspeed":
        take_deepspeed(draft, path, given, ranks or 1)
        return draft, tool
    asked = {name.lstrip("-").replace("-", "_"): value for name, value in given.items()}
    skipped = {name for name, other in SAME.items() if _counts(asked.get(other))}
    assumed = {name: value for name, value in USUAL[tool].items() if name not in asked and name not in skipped}
    for name, value in (assumed | asked).items():
        before = dict(draft.values)
        draft.now = (name,) if name in asked else ()
        take(draft, name, value, assumed | asked)
        if name in assumed:
            fresh = [key for key in draft.values if key not in before]
            draft.assumed |= dict.fromkeys(fresh, f"{name}={value}")
    draft.now = ()
    _leave_unchosen_trackers(draft, tool)
    without_preset(draft)
    batch(draft, assumed | asked, ranks or 1)
    too_long(draft, asked, tool == "axolotl")
    return draft, tool


def _leave_unchosen_trackers(draft: Draft, tool: Tool) -> None:
    """Leave options of trackers that were not chosen. In a file of axolotl, an option of a tracker chooses it."""
    for key in list(draft.values):
        part, _, rest = key.partition(".")
        tracker = rest.partition(".")[0]
        chosen = draft.choices.get("tracker", ())
        if part != "callbacks" or tracker not in group_options("tracker") or tracker in chosen:
            continue
        if tool == "axolotl":
            draft.choose("tracker", tracker)
            continue
        value = draft.values.pop(key)
        for name in draft.written_by.pop(key, ()):
            draft.leave(
                name,
                value,
                f"is an option of {tracker}, which report_to does not name; to use it, add tracker={tracker}",
            )


def _recognised(given: Mapping[str, Any]) -> Tool:
    found: list[Tool] = [name for name, marks in MARKS.items() if any(mark in given for mark in marks)]
    return found[0] if found else "transformers"


def _counts(value: Any) -> bool:
    return value is not None and value is not False and str(value) not in ("-1", "steps")


def take(draft: Draft, name: str, value: Any, given: Mapping[str, Any]) -> None:
    """Convert one argument into the draft, or list it there as not converted, with advice."""
    if value is None:
        return
    if name in RULES:
        RULES[name](draft, value, given)
        return
    other = find(name)
    if other is None:
        draft.leave(name, value, "is not known to trireme; see docs/coming-from.md and trireme keys")
    elif other.ours in _keys() and not other.how:
        draft.set(other.ours, _typed(other.ours, value))
    elif value is False and name not in ON:
        return  # the other tool has it off, and there is no such switch here
    elif value is True and (found := PLAIN.fullmatch(other.how)):
        draft.assign(f"{found['key']}={found['value']}")
    elif value == "" or value == [] or value == {}:
        return
    else:
        draft.leave(name, value, other.fix(None if value is False else value))


@cache
def _keys() -> dict[str, str]:
    """Types of all keys of a recipe, as ``trireme keys`` shows them."""
    return {key.path: key.type for key in keys()}


def _typed(key: str, value: Any) -> Any:
    """A number that the file has as a text (YAML reads 2e-5 as one), if the key takes numbers."""
    if not isinstance(value, str) or not re.search(r"\b(int|float)\b", _keys()[key]):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    if "float" in _keys()[key] or not number.is_integer():  # the check refuses what fits no key
        return number if math.isfinite(number) else value
    return int(number)


def _take_accelerate(draft: Draft, path: Path, given: Mapping[str, Any]) -> None:
    from ..accelerate import with_choices
    from ..accelerate_file import settings_of_file

    settings, processes = settings_of_file(str(path))
    for text in with_choices([], settings):
        draft.assign(text.lstrip("+"))
    draft.ranks = max(processes // (given.get("num_machines") or 1), 1)
    inner = given.get("deepspeed_config")
    times = inner.get("gradient_accumulation_steps") if isinstance(inner, dict) else None
    if times not in (None, 1, "auto"):
        why = (
            "needs the size of a micro-batch, which is not in this file; set trainer.global_batch_size to that size x "
        )
        draft.leave("gradient_accumulation_steps", times, f"{why}{times} x data ranks")
    machines = given.get("num_machines") or 1
    if machines != 1:
        why = "is not a key of the recipe; write launch=slurm launch.nodes=N, or use torchrun (docs/launchers.md)"
        draft.leave("num_machines", machines, why)
