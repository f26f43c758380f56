"""The typed root of a recipe, and the checks that need more than one of its parts.

Every part is a dataclass of its own package; this file puts them together. ``read_recipe`` returns the typed object or
all problems: of single fields, of fields that contradict each other, and of the plan with the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..launch.launch_config import LaunchConfig
from ..models.accepted_configs import accepted_config
from ..models.check_model import check_kernel, check_model, family_for_plan
from ..models.check_packing import check_packing
from ..models.heads import WRITERS
from ..models.model_config import ModelConfig, weights_folder
from ..models.vocabulary import too_few_embeddings
from ..parallel.check_plan import check_plan
from ..parallel.plan import Plan
from ..trainer.check_steps import check_steps
from ..trainer.checkpoint.checkpoint_config import CheckpointConfig
from ..trainer.component import Component
from ..trainer.data.chat.conversation import COLUMNS
from ..trainer.data.check_data import check_data
from ..trainer.data.check_tokenizer import check_tokenizer
from ..trainer.data.data_config import DataConfig
from ..trainer.data.given import GIVEN
from ..trainer.data.wanted_columns import wanted_columns
from ..trainer.folders import folder_problem, name_problem
from ..trainer.generation import GenerationConfig
from ..trainer.recipe_values import recipe_values
from ..trainer.schedules import OWN, ScheduleConfig
from ..trainer.settings import EmaConfig, RunConfig, TrainerConfig
from ..trainer.tasks.task import head_of, learns_from_rows, reads_texts
from .build_parts import build_callbacks, built, check_collator, check_frozen, check_values
from .check_metrics import check_averages, check_metrics
from .components import Provided
from .contracts import check_callbacks, check_optimizer, check_task
from .suggest import with_names_from_elsewhere
from .validate import read_parts, schema_paths

PROVIDED = {
    "optimizer": Provided(positional=1),
    OWN: Provided(positional=1),
    "collator": Provided(names=frozenset(GIVEN)),
}
"""Arguments that ``trainer.build`` passes to components, in addition to those of the recipe."""
NPROC = "change --nproc"


@dataclass
class RecipeConfig:
    """The complete description of a run."""

    run: RunConfig
    """Folder, logging and limits of the run."""
    model: ModelConfig
    """Model to train: its family, sizes and initial weights."""
    task: Component
    """Task of the model: its head, loss and metrics."""
    data: DataConfig
    """Training and held-out data, and the tokenizer."""
    plan: Plan
    """Parallelism of the run: how it is spread over processes."""
    trainer: TrainerConfig
    """Length of training, batch sizes, and intervals of logging and evaluation."""
    optimizer: Component
    """Optimizer; the engine passes the parameter groups to it."""
    scheduler: ScheduleConfig
    """Schedule of the learning rate."""
    checkpoint: CheckpointConfig
    """When checkpoints are written and which are kept."""
    collator: Component | None = None
    """Collator, which makes batches of samples; null takes the one of the task."""
    generation: GenerationConfig | None = None
    """Texts that the model writes in evaluations, by which it is scored; null writes none."""
    ema: EmaConfig | None = None
    """Exponential moving average of the weights; null keeps none."""
    callbacks: dict[str, Component] = field(default_factory=dict)
    """Callbacks by a name of your choice; they are called in this order."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Where ``trireme launch`` starts the run, and with which resources."""
    seed: int = 0
    """Seed of initial weights, sample order and noise."""


def read_recipe(
    raw: dict[str, Any], world_size: Callable[[Plan], int], remedy: str = NPROC, look_at_data: bool = False
) -> tuple[RecipeConfig | None, list[Problem]]:
    """The typed recipe, or None and all its problems.

    Args:
        raw: the recipe as plain data.
        world_size: gives the number of processes for a plan.
        remedy: tells the user how to change the number of processes.
        look_at_data: open the sources, and read the head of every local file.
    """
    if problems := list(_unreadable(raw)):
        return None, problems
    parts, problems = read_parts(raw, RecipeConfig, PROVIDED)
    problems = with_names_from_elsewhere(problems, list(schema_paths(RecipeConfig)))
    if look_at_data and "data" in parts and not any(problem.field.startswith("data.") for problem in problems):
        task = raw.get("task")
        chats = parts["data"].chat is not None
        wanted = dict(COLUMNS) if chats else wanted_columns(task)
        problems += check_data(parts["data"], parts.get("collator"), chats or learns_from_rows(task), wanted)
    if any(problem.field.startswith(OWN) for problem in problems):
        parts.pop("scheduler", None)  # its own function cannot be called
    processes = world_size(parts["plan"]) if "plan" in parts else None
    problems += _check_parts(parts, processes, remedy)
    problems += _check_built(parts, {problem.field for problem in problems})
    return (None, problems) if problems else (RecipeConfig(**parts), [])


def _unreadable(raw: Any, path: str = "") -> Iterator[Problem]:
    """Problems of texts with characters that neither a file name nor a text file can hold."""
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and ("\0" in value or (not value.isascii() and not _encodes(value))):
            yield Problem(where, "contains a character that cannot be written into a file", "leave it out", value)
        else:
            yield from _unreadable(value, where)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def check(recipe: RecipeConfig, world_size: int) -> list[Problem]:
    """Problems between the parts of a typed recipe that are known before a process starts."""
    return _check_parts(vars(recipe), world_size)


def _check_built(parts: dict[str, Any], refused: set[str]) -> list[Problem]:
    """Problems that only show when a part is built, for parts without problems so far."""

    def sound(key: str) -> bool:
        return key.split(".")[0] in parts and not any(f"{field}.".startswith(f"{key}.") for field in refused)

    problems = check_values(parts["optimizer"]) if sound("optimizer") else []
    task, found = built(parts["task"], "task") if sound("task") else (None, [])
    problems += found
    wanted = {name: part for name, part in parts.get("callbacks", {}).items() if sound(f"callbacks.{name}")}
    callbacks, found = build_callbacks(wanted)
    problems += found
    if parts.get("collator") and sound("collator") and "data" in parts and "trainer" in parts:
        problems += check_collator(parts["collator"], parts["data"], parts["trainer"], parts.get("seed", 0))
    if task is not None and sound("model"):
        problems += check_frozen(parts["model"], task)
    if sound("ema"):
        problems += check_averages(parts.get("ema") is not None, callbacks)
    if task is not None and all(name in parts for name in ("checkpoint", "trainer", "data")):
        writes = parts.get("generation")
        scores = writes.scores if writes else ()
        problems += check_metrics(parts["checkpoint"], parts["trainer"], parts["data"], task, callbacks, scores)
    return problems


def _check_parts(parts: dict[str, Any], world_size: int | None, remedy: str = NPROC) -> list[Problem]:
    """Problems between parts. A check is skipped if one of its parts has problems of its own."""
    problems: list[Problem] = []
    rules: list[tuple[Callable[..., list[Problem]], tuple[str, ...]]] = [
        (_check_folders, ("run", "data")),
        (_check_length, ("trainer", "checkpoint", "data", "scheduler")),
        (_check_evaluation, ("trainer", "data")),
        (_check_vocabulary, ("data", "model", "task")),
        (_check_native, ("checkpoint", "plan")),
        (_check_rates, ("model", "optimizer", "plan")),
        (_check_generation, ("generation", "plan", "task")),
        (check_task, ("task",)),
        (check_optimizer, ("optimizer",)),
        (check_callbacks, ("callbacks",)),
        (lambda plan, trainer: _check_batch(plan, trainer, world_size or 1, remedy), ("plan", "trainer")),
        (
            lambda model, plan, launch: check_kernel(model, plan.precision, launch.kind == "local"),
            ("model", "plan", "launch"),
        ),
        # These checks come last, since they may import transformers.
        (_check_model, ("model", "data", "task")),
        (_check_chat, ("model", "data", "task")),
        (_check_packing, ("data", "model", "task", "trainer")),
        (
            lambda **parts: _check_plan(parts, world_size or 1, problems),
            ("plan", "model", "task", "trainer", "data", "optimizer", "scheduler", "ema"),
        ),
    ]
    for rule, names in rules:
        if all(name in parts for name in names):
            problems += rule(**{name: parts[name] for name in names})
    return problems


def _check_batch(plan: Plan, trainer: TrainerConfig, world_size: int, remedy: str) -> list[Problem]:
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


def _check_plan(parts: dict[str, Any], world_size: int, found: list[Problem]) -> list[Problem]:
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
    return check_plan(plan, degrees, family, config, values)


def _check_folders(run: RunConfig, data: DataConfig) -> list[Problem]:
    """Problems of writing the run folder and of creating the cache."""
    found = [("run.dir", run.dir, folder_problem(Path(run.dir)))]
    variable = os.environ.get("TRIREME_CACHE")
    cache = Path(os.path.expanduser(data.cache_dir or variable or "~/.cache/trireme"))
    if not os.path.isdir(cache):  # an existing cache may be complete, and is then only read
        field = "TRIREME_CACHE" if variable and not data.cache_dir else "data.cache_dir"
        why = name_problem(str(cache)).partition("; ")[0] or folder_problem(cache)
        found.append((field, str(cache), why))
    return [Problem(field, why, f"give another folder as {field}", path) for field, path, why in found if why]


def _check_length(
    trainer: TrainerConfig, checkpoint: CheckpointConfig, data: DataConfig, scheduler: ScheduleConfig
) -> list[Problem]:
    problems = []
    if data.streaming and trainer.max_steps is None:
        problems.append(
            Problem(
                "trainer.max_steps",
                "is needed with data.streaming=true, since epochs cannot be counted on a stream",
                "set trainer.max_steps and trainer.epochs=null",
            )
        )
    problems += _check_cadences(trainer, checkpoint, data)
    if trainer.max_steps is not None:
        problems += check_steps(trainer, scheduler, trainer.max_steps)
    return problems


def _check_cadences(trainer: TrainerConfig, checkpoint: CheckpointConfig, data: DataConfig) -> list[Problem]:
    """Problems of what is due at the end of each pass, which a stream does not have."""
    cadences = {
        "trainer.log_every": trainer.log_every,
        "trainer.eval_every": trainer.eval_every,
        "checkpoint.every": checkpoint.every,
    }
    why = "asks for the end of each pass, and a stream (data.streaming=true) has no passes"
    return [
        Problem(key, why, f"give a number of steps, for example {key}=100", every)
        for key, every in cadences.items()
        if every == "epoch" and data.streaming
    ]


def _check_evaluation(trainer: TrainerConfig, data: DataConfig) -> list[Problem]:
    if data.eval_source is not None or data.held_out > 0 or data.eval_sets:
        return []
    why = "requests evaluations, but data.held_out is 0 and there is no data.eval_source"
    return [
        Problem(key, why, f"set data.held_out=0.05, or {key}={off}", value)
        for key, value, off in (
            ("trainer.eval_every", trainer.eval_every, "null"),
            ("trainer.eval_on_start", trainer.eval_on_start, "false"),
        )
        if value
    ]


def _check_native(checkpoint: CheckpointConfig, plan: Plan) -> list[Problem]:
    if not checkpoint.deepspeed or plan.data_parallel == "deepspeed":
        return []
    why = f"writes files of DeepSpeed's engine, which plan {plan.name} does not run"
    return [Problem("checkpoint.deepspeed", why, "choose a plan such as zero2, or leave it out", True)]


def _check_rates(model: ModelConfig, optimizer: Component, plan: Plan) -> list[Problem]:
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


def _check_generation(generation: GenerationConfig | None, plan: Plan, task: Component) -> list[Problem]:
    """The problem of texts that the model or the plan cannot write."""
    if generation is None:
        return []
    head, fix = head_of(task), "leave the part generation out"
    if head not in WRITERS:
        return [Problem("generation", f"asks for texts, which a model with the head {head} does not write", fix)]
    if plan.pipeline != 1:
        why = f"asks for texts, which plan {plan.name} cannot write, since no rank has the whole model"
        return [Problem("generation", why, f"{fix}, or choose a plan without stages")]
    return []


def _check_model(model: ModelConfig, data: DataConfig, task: Component) -> list[Problem]:
    found = check_model(model, data.block_size, head_of(task))
    return found or (_check_tokenizer(data, model) if reads_texts(task) else [])


def _check_packing(data: DataConfig, model: ModelConfig, task: Component, trainer: TrainerConfig) -> list[Problem]:
    """Problems of rows whose documents must not see each other, for a model without problems of its own."""
    from_rows = learns_from_rows(task) or data.chat is not None
    if data.group_by_length and (data.packing == "bins" or (data.packing and not from_rows)):
        why = f"has no use with data.packing={data.packing}, whose rows are full"
        return [Problem("data.group_by_length", why, "leave it out, or set data.packing=false", True)]
    if not data.separates:
        return []
    if from_rows and data.packing != "bins":
        why = "cuts blocks from documents end to end, and this task learns from rows"
        return [Problem("data.packing", why, "set data.packing=bins, or false", data.packing)]
    try:
        return check_packing(model, head_of(task), data.packing, trainer.micro_batch_size)
    except UserError:  # of the model, reported by its own check
        return []


def _check_tokenizer(data: DataConfig, model: ModelConfig) -> list[Problem]:
    """Problems of the named tokenizer, or of that beside the weights: it is missing, or too large for the model."""
    named = data.tokenizer.path
    if named is None and model.weights is None:
        return []
    folder = Path(named) if named is not None else weights_folder(model)
    field = "data.tokenizer.path" if named is not None else "model.weights"
    problems, tokens = check_tokenizer(str(folder), field)
    embeddings = getattr(accepted_config(model).get_text_config(), "vocab_size", None)
    if tokens is not None and embeddings is not None and tokens > embeddings and not model.resize_embeddings:
        problems.append(too_few_embeddings(embeddings, tokens, model.weights))
    return problems


def _check_chat(model: ModelConfig, data: DataConfig, task: Component) -> list[Problem]:
    """Problems of conversations: another task, a template that cannot be used, more tokens than embeddings."""
    if data.chat is None:
        return []
    if head_of(task) != "causal_lm" or learns_from_rows(task):
        why = "makes samples of conversations, and this task does not learn the tokens of a text"
        return [Problem("data.chat", why, "set task=causal_lm, or leave data.chat out")]
    from ..trainer.data.chat.check_chat import check_chat  # imported here, since it needs transformers

    weights = weights_folder(model) if model.weights is not None else None
    problems, tokens = check_chat(data.chat, data.tokenizer, weights, data.block_size)
    embeddings = getattr(accepted_config(model).get_text_config(), "vocab_size", None)
    if tokens is not None and embeddings is not None and tokens > embeddings and not model.resize_embeddings:
        problems.append(too_few_embeddings(embeddings, tokens, model.weights))
    return problems


def _check_vocabulary(data: DataConfig, model: ModelConfig, task: Component) -> list[Problem]:
    """The problem of a tokenizer to be trained whose vocabulary is larger than the model's."""
    if not reads_texts(task) and head_of(task) not in ("ctc", *WRITERS):  # some models of pictures have a vocabulary
        return []
    tokenizer, size = data.tokenizer, model.config.get("vocab_size")
    if tokenizer.path is None and model.weights is None and isinstance(size, int) and tokenizer.vocab_size > size:
        return [
            Problem(
                "data.tokenizer.vocab_size",
                f"is larger than the model's vocabulary (model.config.vocab_size={size})",
                f"use at most {size}, or model.config.vocab_size={tokenizer.vocab_size}",
                tokenizer.vocab_size,
            )
        ]
    return []
