"""Convert FSDP options of transformers (``fsdp_config``), from a file or a mapping, into options of a trireme plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..configs.suggest import nearest_key
from ..errors import Problem, UserError
from ..parallel.plan import FSDPOptions
from .argument_file import read_arguments

FSDP_PLANS = {
    "FULL_SHARD": "fsdp_full_shard",
    "SHARD_GRAD_OP": "fsdp_shard_grad_op",
    "NO_SHARD": "fsdp_no_shard",
    "HYBRID_SHARD": "fsdp_hybrid_shard",
    "HYBRID_SHARD_ZERO2": "fsdp_hybrid_shard_zero2",
}
"""Sharding strategies of FSDP1, in the order of their numbers."""
KEY = "plan.fsdp"
ALWAYS = (
    *("version", "use_orig_params", "limit_all_gathers", "sync_module_states", "cpu_ram_efficient_loading"),
    *("state_dict_type", "xla_fsdp_settings", "xla_fsdp_grad_ckpt", "xla_fsdp_v2"),
)
"""Options of FSDP1 and of TPUs that change nothing here (``FSDPOptions.REPLACED`` has the reasons)."""
SWITCHES = {
    "cpu_offload": "fsdp.offload",
    "offload_params": "fsdp.offload",
    "forward_prefetch": "fsdp.forward_prefetch",
    "reshard_after_forward": "fsdp.reshard_after_forward",
}
"""Switch of transformers -> key of the plan."""
OWN = [field.name for field in dataclasses.fields(FSDPOptions)]


def fsdp_options(given: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[Problem]]:
    """Options of a plan by dotted key (``fsdp.offload``), and problems of options without a counterpart.

    Args:
        given: options under the names of transformers, with ``fsdp_`` before them or without, or of ``plan.fsdp``.
        source: text before each option's name in the problems, such as the file.
    """
    named = {name.removeprefix("fsdp_"): (name, value) for name, value in given.items()}
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for plain, (name, value) in named.items():
        try:
            found |= dict(_taken(plain, value, {plain: value for plain, (_, value) in named.items()}))
        except ValueError as error:
            why, _, fix = str(error).partition("; ")
            problems.append(Problem(f"{source}{name}", why, fix, value))
    return found, problems


def _taken(name: str, value: Any, given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys of the plan, and their values, that one option is converted into.

    Raises:
        ValueError: it has no counterpart; the text is the reason, a semicolon, and the fix.
    """
    policy = str(given.get("auto_wrap_policy", ""))
    if name == "sharding_strategy" or (name == "reshard_after_forward" and _switch(value) is None):
        yield "fsdp.reshard_after_forward", _reshards(value)
        return
    if name in SWITCHES and (on := _switch(value)) is not None:
        yield SWITCHES[name], int(on) if name == "forward_prefetch" else on
    elif name == "activation_checkpointing" and (on := _switch(value)) is not None:
        if on:
            yield "recompute", "full"
    elif name == "auto_wrap_policy":
        if policy not in ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP"):
            fix = "use TRANSFORMER_BASED_WRAP, or a large min_num_params with SIZE_BASED_WRAP"
            raise ValueError(f"would gather the whole model at once; {fix}")
    elif name == "min_num_params":
        if value and policy != "TRANSFORMER_BASED_WRAP":
            yield f"fsdp.{name}", int(value) if isinstance(value, float) and value.is_integer() else value
    elif name == "transformer_layer_cls_to_wrap":
        if value and policy != "SIZE_BASED_WRAP":
            yield f"fsdp.{name}", [each.strip() for each in value.split(",")] if isinstance(value, str) else value
    elif name == "backward_prefetch":
        yield f"fsdp.{name}", value.lower() if isinstance(value, str) else value
    elif name in OWN:
        yield f"fsdp.{name}", value
    elif name in FSDPOptions.REPLACED and name not in ALWAYS and (name, _switch(value)) != ("xla", False):
        why, fix = FSDPOptions.REPLACED[name]
        raise ValueError(f"{why}; {fix}")
    elif name not in (*ALWAYS, "xla"):
        near = nearest_key(name, [*OWN, *SWITCHES], KEY, [])
        hint = f"did you mean {near}?" if near else "see trireme keys plan.fsdp"
        raise ValueError(f"is not an option of FSDP; {hint}")


def _reshards(value: Any) -> bool:
    """Whether a sharding strategy, by its name or number, frees gathered parameters after the forward pass.

    Raises:
        ValueError: it is a plan of its own, or unknown.
    """
    strategy = str(value).upper().removeprefix("_")
    strategy = list(FSDP_PLANS)[int(strategy) - 1] if strategy in ("1", "2", "3", "4", "5") else strategy
    if strategy in ("FULL_SHARD", "SHARD_GRAD_OP"):
        return strategy == "FULL_SHARD"
    if strategy in FSDP_PLANS:
        raise ValueError(f"is a plan of its own here; choose plan={FSDP_PLANS[strategy]} and leave it out")
    raise ValueError(f"is not known; use {', '.join(FSDP_PLANS)}")


def _switch(value: Any) -> bool | None:
    """The value of a switch of transformers; None if it is neither on nor off."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())


def with_fsdp_file(plan: dict[str, Any], path: str, of_file: Mapping[str, Any]) -> list[Problem]:
    """Put the options of a file into a plan whose ``fsdp`` names it; returns the problems of the file.

    Args:
        of_file: FSDP options of the plan's own YAML file, which count unless the file at ``path`` sets them.
    """
    from ..configs.validate import schema_defaults

    plan["fsdp"] = {**schema_defaults(FSDPOptions), **of_file}
    try:
        found, problems = fsdp_options(read_arguments(Path(path).expanduser(), KEY), f"{path}: ")
    except UserError as error:
        return [each for each in error.problems if isinstance(each, Problem)]
    for key, value in found.items():
        part, _, name = key.partition(".")
        if name:
            plan["fsdp"][name] = value
        elif plan.get(part, "none") == "none":
            plan[part] = value
    return problems
