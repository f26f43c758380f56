"""Check that the parallelism (``plan``) of a recipe fits its other parts: batch sizes, model, task, optimizer,
evaluations, checkpoints and generation. Also check that torch has the chosen backend of ``torch.compile``.
"""

from __future__ import annotations

from typing import Any

from ..errors import Problem, UserError
from ..models.accepted_configs import accepted_config
from ..models.check_model import family_for_plan
from ..models.heads import WRITERS
from ..models.model_config import ModelConfig
from ..parallel.check_plan import check_plan
from ..parallel.check_quantised import check_quantised
from ..parallel.plan import Plan
from ..trainer.checkpoint.checkpoint_config import CheckpointConfig
from ..trainer.collect_recipe_values import recipe_values
from ..trainer.component import Component
from ..trainer.generation import GenerationConfig
from ..trainer.parameter_groups import GROUPS, ParameterGroups
from ..trainer.settings import TrainerConfig
from ..trainer.tasks.task import head_of, own_steps_of
from .values import did_you_mean

NPROC = "change --nproc"
"""Fix for a number of processes that does not fit the plan."""


def check_batch(plan: Plan, trainer: TrainerConfig, world_size: int, remedy: str) -> list[Problem]:
    """The problem if the plan does not fit the processes, or micro-batches do not divide a step evenly."""
    try:
        data = plan.degrees(world_size).data
    except ValueError as error:
        why, _, fix = str(error).partition("; ")
        return [Problem("plan", why, fix or f"{remedy}, or choose another plan", plan.name)]
    whole, micro = trainer.global_batch_size, trainer.micro_batch_size
    unit = micro * data
    if whole % unit == 0:
        return []
    neighbours = [str(size) for size in (whole // unit * unit, (whole // unit + 1) * unit) if size]
    fix = f"set trainer.global_batch_size to {' or '.join(neighbours)}"
    if whole % data == 0:
        share = whole // data
        fitting = [size for size in range(1, share + 1) if share % size == 0]
        near = [max(size for size in fitting if size <= micro), *[size for size in fitting if size > micro][:1]]
        fix += f", or trainer.micro_batch_size to {' or '.join(map(str, near))}"
    degrees = [f"plan.{axis}" for axis in ("replicate", "shard") if getattr(plan, axis) not in ("auto", 1)]
    fix += f", or change {' or '.join(degrees)}" if degrees else ""
    why = f"is not a multiple of trainer.micro_batch_size x data ranks ({micro} x {data} = {unit})"
    return [Problem("trainer.global_batch_size", why, fix, whole)]


def check_plan_with_model(parts: dict[str, Any], world_size: int, found: list[Problem]) -> list[Problem]:
    """Problems between plan and model. Problems of the model itself, or of the number of processes, come first.

    Args:
        found: problems found so far.
    """
    plan, model, data = parts["plan"], parts["model"], parts["data"]
    spreads = world_size > 1 or plan.data_parallel != "ddp"
    if not spreads or any(problem.field.startswith(("model.", "data.block_size")) for problem in found):
        return []
    try:
        degrees = plan.degrees(world_size)
    except ValueError:
        return []
    config = accepted_config(model)
    values = recipe_values(parts["trainer"], parts["optimizer"], parts["scheduler"], parts["ema"], config, data)
    family = model.spec
    if degrees.tensor > 1:
        try:
            family = family_for_plan(model, head_of(parts["task"]))
        except UserError as error:
            return [problem for problem in error.problems if isinstance(problem, Problem)]
    found = check_quantised(plan, degrees, model.quantization, model.qat)
    return found or check_plan(plan, degrees, family, config, values)


def check_own_steps(task: Component, plan: Plan) -> list[Problem]:
    """The problem of a task that calls the model itself, under a plan where no rank has all of it."""
    steps = sorted(own_steps_of(task))
    if not steps or plan.pipeline == 1:
        return []
    why = f"calls the model itself ({', '.join(steps)}), but under plan {plan.name} no rank has the whole model"
    fix = "choose a plan without pipeline stages, or give the task only loss and evaluate, which get the outputs"
    return [Problem("task", why, fix, task["_target_"])]


def check_eval_precision(trainer: TrainerConfig, plan: Plan) -> list[Problem]:
    """Problems of evaluations in another precision than training, where the plan holds one type of weights."""
    problems = []
    fix = (
        f"leave it out, or write trireme evaluate RECIPE plan=single trainer.{{}}={{}} after training with {plan.name}"
    )
    asked, gathered = trainer.eval_precision, plan.fsdp.param_dtype or plan.precision
    why = ""
    if plan.uses_deepspeed:
        why = f"DeepSpeed's engine holds weights only in {plan.precision}"
    elif plan.pipeline != 1:
        why = f"the pipeline stages of plan {plan.name} send hidden states in {plan.precision}"
    elif plan.data_parallel == "fsdp" and gathered != "fp32":
        why = f"FSDP gathers weights in {gathered}"
    if asked not in (None, plan.precision) and why:
        here = fix.format("eval_precision", asked)
        problems.append(Problem("trainer.eval_precision", f"differs from plan.precision, but {why}", here, asked))
    weights = trainer.eval_weights
    if weights != "fp32" and (plan.uses_deepspeed or plan.pipeline != 1):
        here = fix.format("eval_weights", weights)
        problems.append(Problem("trainer.eval_weights", f"asks for weights in {weights}, but {why}", here, weights))
    return problems


def check_deepspeed_files(checkpoint: CheckpointConfig, plan: Plan) -> list[Problem]:
    """The problem of ``checkpoint.deepspeed`` under a plan that does not run DeepSpeed."""
    if not checkpoint.deepspeed or plan.data_parallel == "deepspeed":
        return []
    why = f"writes files of DeepSpeed's engine, which plan {plan.name} does not run"
    return [Problem("checkpoint.deepspeed", why, "choose a plan such as zero2, or leave it out", True)]


def check_rates(model: ModelConfig, optimizer: Component, plan: Plan) -> list[Problem]:
    """Problems of two learning rates (LoRA+), which are multiples of that of the recipe's optimizer."""
    if model.adapter is None or model.adapter.lr_ratio == 1:
        return []
    field, ratio = "model.adapter.lr_ratio", model.adapter.lr_ratio
    if not isinstance(optimizer.get("lr"), int | float):
        return [Problem(field, "is a multiple of optimizer.lr, which is not given", "set optimizer.lr", ratio)]
    if plan.uses_deepspeed and isinstance(plan.deepspeed, str):
        why = "gives two learning rates, and a DeepSpeed JSON may name an optimizer or a scheduler that sets only one"
        return [Problem(field, why, "use plan=zero2 or another plan of configs/plan, or 1", ratio)]
    return []


def check_groups(parameter_groups: ParameterGroups | None, plan: Plan) -> list[Problem]:
    """The problem of parameter groups under an engine whose own optimizer or scheduler would drop their options."""
    if parameter_groups is None or not (plan.uses_deepspeed and isinstance(plan.deepspeed, str)):
        return []
    why = "sets options of parameter groups, but an optimizer or scheduler in a DeepSpeed JSON may ignore them"
    return [Problem(GROUPS, why, "use plan=zero2 or another plan of configs/plan, or leave it out")]


BACKENDS = ("inductor", "eager", "aot_eager", "cudagraphs")
"""Backends of ``torch.compile`` that every torch has; others are looked up, which takes seconds."""


def check_compile(plan: Plan) -> list[Problem]:
    """The problem of a backend that torch does not have."""
    if not plan.compile or plan.compile_backend in BACKENDS:
        return []
    import torch

    known = sorted({*BACKENDS, *torch.compiler.list_backends(exclude_tags=())})
    if plan.compile_backend in known:
        return []
    fix = did_you_mean(plan.compile_backend, known)
    return [Problem("plan.compile_backend", "is not a backend of this torch.compile", fix, plan.compile_backend)]


def check_generation(generation: GenerationConfig | None, plan: Plan, task: Component) -> list[Problem]:
    """The problem of ``generation`` if the model or the plan cannot generate text."""
    if generation is None:
        return []
    head, fix = head_of(task), "leave the part generation out"
    if head not in WRITERS:
        return [Problem("generation", f"generates text, but a model with the head {head} cannot do so", fix)]
    if plan.pipeline != 1:
        why = f"generates text, but under plan {plan.name} no rank has the whole model"
        return [Problem("generation", why, f"{fix}, or choose a plan without pipeline stages")]
    return []
