"""Check the parts of a recipe (model, data, plan ...), each by itself and against the others, and return the problems.
``check_parts`` looks at the given values; ``check_built`` finds problems that only show when a part is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import ComponentFailed, Problem, UserError
from ..models.accepted_configs import accepted_config
from ..models.check_loss import check_loss
from ..models.check_model import check_kernel
from ..models.quantization.check_quantization import check_qat, check_quantization
from ..trainer.tasks.task import own_steps
from .build_parts import (
    build_blueprint,
    build_callbacks,
    built,
    check_collator,
    check_later_parts,
    check_values,
    other_problems,
    setting_of,
)
from .check_exports import check_exports
from .check_lanes import check_lanes
from .check_lengths import check_evaluation, check_folders, check_length
from .check_metrics import check_averages, check_metrics, check_objectives
from .check_model_data import (
    check_conversations,
    check_latents,
    check_mask_token,
    check_model_with_data,
    check_packed_rows,
    check_vocabulary,
)
from .check_parallelism import (
    NPROC,
    check_batch,
    check_compile,
    check_deepspeed_files,
    check_eval_precision,
    check_generation,
    check_groups,
    check_own_steps,
    check_plan_with_model,
    check_rates,
)
from .check_preferences import check_reference, check_written_preferences
from .contracts import check_callbacks, check_loader, check_optimizer, check_task


def check_parts(parts: dict[str, Any], world_size: int | None, remedy: str = NPROC) -> list[Problem]:
    """Problems between parts. A check is skipped if one of its parts has problems of its own."""
    problems: list[Problem] = []
    rules: list[tuple[Callable[..., list[Problem]], tuple[str, ...]]] = [
        (check_folders, ("run", "data")),
        (check_length, ("trainer", "checkpoint", "data", "scheduler")),
        (check_evaluation, ("trainer", "data")),
        (check_vocabulary, ("data", "model", "task")),
        (check_deepspeed_files, ("checkpoint", "plan")),
        (check_own_steps, ("task", "plan")),
        (check_eval_precision, ("trainer", "plan")),
        (check_rates, ("model", "optimizer", "plan")),
        (check_compile, ("plan",)),
        (check_groups, ("parameter_groups", "plan")),
        (check_generation, ("generation", "plan", "task")),
        (check_written_preferences, ("generation", "task")),
        (check_reference, ("model", "task", "trainer")),
        (check_task, ("task",)),
        (check_loader, ("data",)),
        (check_optimizer, ("optimizer",)),
        (check_callbacks, ("callbacks",)),
        (lambda plan, trainer: check_batch(plan, trainer, world_size or 1, remedy), ("plan", "trainer")),
        (
            lambda model, plan, launch: check_kernel(model, plan.precision, launch.kind == "local"),
            ("model", "plan", "launch"),
        ),
        (lambda model, plan: check_quantization(model.quantization, plan.precision), ("model", "plan")),
        (lambda model: check_qat(model.qat), ("model",)),
        # These checks come last, since they may import transformers.
        (check_model_with_data, ("model", "data", "task")),
        (check_conversations, ("model", "data", "task")),
        (check_packed_rows, ("data", "model", "task", "trainer")),
        (check_lanes, ("data", "model", "task", "plan")),
        (check_latents, ("model", "task", "collator", "data")),
        (
            lambda **parts: check_plan_with_model(parts, world_size or 1, problems),
            ("plan", "model", "task", "trainer", "data", "optimizer", "scheduler", "ema"),
        ),
    ]
    for rule, names in rules:
        if all(name in parts for name in names):
            problems += rule(**{name: parts[name] for name in names})
    return problems


def check_built(parts: dict[str, Any], refused: set[str]) -> list[Problem]:
    """Problems that only show when a part is built, for parts without problems so far."""

    def sound(key: str) -> bool:
        return key.split(".")[0] in parts and not any(f"{field}.".startswith(f"{key}.") for field in refused)

    def usable(key: str) -> Any:
        return parts.get(key) if sound(key) else None

    task, problems = built(parts["task"], "task") if sound("task") else (None, [])
    groups = usable("parameter_groups")
    blueprint = None
    if task is not None and sound("model"):
        blueprint, found = build_blueprint(parts["model"], task, groups)
        problems += found
    if sound("optimizer"):
        used = (usable("model"), usable("scheduler"), usable("trainer"), groups, blueprint)
        problems += _check_optimizer(parts["optimizer"], *used)
    problems += check_later_parts(usable("data"), usable("scheduler"))
    wanted = {name: part for name, part in parts.get("callbacks", {}).items() if sound(f"callbacks.{name}")}
    callbacks, found = build_callbacks(wanted)
    problems += found
    for name in parts.get("callbacks", {}).keys() - wanted.keys():
        problems += other_problems(parts["callbacks"][name], f"callbacks.{name}", refused)
    if parts.get("collator") and sound("collator") and "data" in parts and "trainer" in parts:
        config = accepted_config(parts["model"]) if sound("model") else None
        problems += check_collator(parts["collator"], parts["data"], parts["trainer"], parts.get("seed", 0), config)
    if task is not None and sound("model") and sound("data") and not parts.get("collator"):
        problems += check_mask_token(task, parts["data"], parts["model"])
    if task is not None and sound("model.loss") and "plan" in parts and "launch" in parts:
        tensor, here = parts["plan"].tensor, parts["launch"].kind == "local"
        gives = getattr(task, "head_gives_losses", lambda: False)() and not own_steps(task)
        problems += check_loss(parts["model"], gives, tensor if isinstance(tensor, int) else 1, here)
    if sound("model"):
        problems += check_exports(parts["model"], callbacks)
    if sound("ema"):
        problems += check_averages(parts.get("ema") is not None, callbacks)
    if task is not None and all(name in parts for name in ("checkpoint", "trainer", "data")):
        writes = parts.get("generation")
        scores = writes.scores if writes else ()
        judged = (parts["checkpoint"], parts["trainer"], parts["data"], task, callbacks, scores)
        problems += check_metrics(*judged)
        if parts.get("search") is not None:
            problems += check_objectives(parts["search"], *judged)
    return problems


def _check_optimizer(optimizer: Any, *used: Any) -> list[Problem]:
    """Problems of the optimizer and of its parameter groups (``setting_of`` says what is ``used``)."""
    try:
        setting, problems = setting_of(optimizer, *used)
    except UserError as error:  # the user's function of groups
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    except ComponentFailed as error:
        return [error.problem]
    return [*problems, *check_values(optimizer, setting)]
