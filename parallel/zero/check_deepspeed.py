"""Check a DeepSpeed plan before ranks start (its options, its offload folder, the tools that compile operators), and
list the problems that are found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import Problem
from ..plan import Plan
from ..recipe_values import RecipeValues
from .deepspeed_json import deepspeed_config
from .json_fill import offload_device, zero_block
from .library import current_accelerator, installed
from .operators import aio_compatible, missing_tools, uses_nvme


def check_deepspeed(plan: Plan, recipe: RecipeValues, data_ranks: int) -> list[Problem]:
    """Problems of a plan with ``data_parallel: deepspeed`` under this recipe; empty for other plans."""
    if not plan.uses_deepspeed:
        return []
    config, problems = deepspeed_config(plan, recipe, data_ranks)
    if recipe.ema:
        why = "cannot average weights that DeepSpeed keeps in shards of its own"
        problems.append(Problem("ema", why, "write ema: null, or use a plan without DeepSpeed (fsdp_full_shard)"))
    if installed() and config:
        problems += nvme_problems(plan, config) + _compiler_problems(config)
    return problems


def nvme_problems(plan: Plan, config: dict[str, Any]) -> list[Problem]:
    """Problems of nvme offload: its folder cannot be written, or libaio is missing."""
    place = "plan.deepspeed:zero_optimization" if isinstance(plan.deepspeed, str) else "plan.deepspeed"
    problems = []
    parts = [name for name in ("offload_optimizer", "offload_param") if offload_device(config, name) == "nvme"]
    for name in parts:
        path = zero_block(config)[name].get("nvme_path")
        if path and "$" not in path and not _writable(Path(path)):  # variables are known only where training runs
            why = "cannot be written"
            problems.append(Problem(f"{place}.{name}.nvme_path", why, "give a folder on a fast local disk", str(path)))
    if uses_nvme(config) and not aio_compatible():
        why = "needs DeepSpeed's async_io operator, which cannot be built here"
        fix = "install libaio (Debian: apt-get install libaio-dev) and a C++ compiler, or offload to cpu"
        problems.append(Problem(f"{place}.{parts[0]}.device", why, fix, "nvme"))
    return problems


def _compiler_problems(config: dict[str, Any]) -> list[Problem]:
    """Problems of compiling operators at first use, as offload does, and communication on the CPU."""
    from deepspeed.git_version_info import installed_ops

    needed = current_accelerator().device_name() == "cpu" or offload_device(config, "offload_optimizer") != "none"
    missing = missing_tools()
    if not needed or not missing or any(installed_ops.values()):
        return []
    why = f"compiles operators of DeepSpeed at first use, and {' and '.join(missing)} cannot be found"
    return [Problem("plan", why, "install a C++ compiler (Debian: apt-get install g++) and ninja (pip install ninja)")]


def _writable(folder: Path) -> bool:
    """Whether DeepSpeed can create or write ``folder``. A missing parent counts as a disk that is not mounted."""
    if not os.path.exists(folder):
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
