"""List the main modules that a recipe's ranks will import: trireme's own components, the plan's strategy and the model.
The fork server (``fork_server.py``) imports them first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

BY_DATA_PARALLEL = {
    "deepspeed": ("trireme.parallel.zero.library:import_deepspeed", "trireme.parallel.zero.zero_strategy"),
    "fsdp": ("trireme.parallel.fsdp",),
}


def imports_of(recipe: Mapping[str, Any]) -> list[str]:
    """Names of the modules of trireme's own components, of the plan's strategy and of the model.

    Users' own components are left out, since importing their modules may have side effects.
    """
    plan, model = recipe.get("plan") or {}, recipe.get("model") or {}
    targets = (target.rpartition(".")[0] for target in _targets(recipe))
    found = [module for module in targets if module.startswith("trireme.")]
    found += BY_DATA_PARALLEL.get(plan.get("data_parallel", ""), ())
    if plan.get("pipeline", 1) != 1:
        found.append("trireme.parallel.pipeline.pipeline_strategy")
    kind = (model.get("config") or {}).get("model_type") or model.get("family")
    if isinstance(kind, str) and kind.isidentifier():
        found.append(f"transformers.models.{kind}.modeling_{kind}")
    return list(dict.fromkeys(found))


def _targets(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        for value in part.values():
            yield from _targets(value)
    elif isinstance(part, list):
        for value in part:
            yield from _targets(value)
