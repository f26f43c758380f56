"""The dataclass of a whole recipe. ``read_recipe`` builds it from plain data or returns the problems; ``check`` checks
that its parts fit each other and the number of processes.

Each part of a recipe is a dataclass of its own package; this file puts the parts together. The problems concern single
keys, keys that contradict each other, or a plan that does not fit the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Problem
from ..launch.launch_config import LaunchConfig
from ..launch.search.search_config import SearchConfig, with_objectives_alone
from ..models.model_config import ModelConfig
from ..parallel.plan import Plan
from ..trainer.checkpoint.checkpoint_config import CheckpointConfig
from ..trainer.component import Component
from ..trainer.data.chat.conversation import COLUMNS
from ..trainer.data.check_data import check_data
from ..trainer.data.constructor_values import GIVEN, OF_LOADER, OF_ORDER
from ..trainer.data.data_config import DataConfig
from ..trainer.data.wanted_columns import wanted_columns
from ..trainer.generation import GenerationConfig
from ..trainer.parameter_groups import ParameterGroups
from ..trainer.schedules import OWN, ScheduleConfig
from ..trainer.settings import EmaConfig, RunConfig, TrainerConfig
from ..trainer.tasks.task import learns_from_rows, takes_chats
from .check_characters import unreadable
from .check_parallelism import NPROC
from .check_parts import check_built, check_parts
from .components import Provided
from .suggest import with_names_from_elsewhere
from .validate import read_parts, schema_paths

PROVIDED = {
    "optimizer": Provided(positional=1),
    OWN: Provided(positional=1),
    "collator": Provided(names=frozenset(GIVEN)),
    "data.loader": Provided(names=frozenset(OF_LOADER)),
    "data.order": Provided(names=frozenset(OF_ORDER)),
}
"""Arguments that ``trainer.build`` passes to components, in addition to those of the recipe."""


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
    parameter_groups: ParameterGroups | None = None
    """Parameters with a learning rate or weight decay of their own; null makes two groups: matrices, and vectors
    without weight decay."""
    ema: EmaConfig | None = None
    """Exponential moving average of the weights; null keeps none."""
    callbacks: dict[str, Component] = field(default_factory=dict)
    """Callbacks by a name of your choice; they are called in this order."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Where ``trireme launch`` starts the run, and with which resources."""
    search: SearchConfig | None = None
    """Keys that ``trireme search`` varies, and metrics by which it ranks the trials; null for no search."""
    seed: int = 0
    """Seed of initial weights, sample order and noise."""


def read_recipe(
    raw: dict[str, Any],
    world_size: Callable[[Plan], int],
    remedy: str = NPROC,
    look_at_data: bool = False,
    fresh: bool = False,
) -> tuple[RecipeConfig | None, list[Problem]]:
    """The typed recipe, or None and all its problems.

    Args:
        raw: the recipe as plain data.
        world_size: gives the number of processes for a plan.
        remedy: fix that tells the user how to change the number of processes.
        look_at_data: open the sources, and read the head of every local file.
        fresh: the run starts over, so adapters are read from the recipe's path, not from the run's checkpoints.
    """
    if problems := list(unreadable(raw)):
        return None, problems
    parts, problems = read_parts(raw, RecipeConfig, PROVIDED)
    problems = with_names_from_elsewhere(problems, list(schema_paths(RecipeConfig)))
    if look_at_data and "data" in parts and not any(problem.field.startswith("data.") for problem in problems):
        task = raw.get("task")
        rows = parts["data"].chat is not None or learns_from_rows(task)
        problems += check_data(parts["data"], parts.get("collator"), rows, wanted_by(task, parts["data"]))
    if any(problem.field.startswith(OWN) for problem in problems):
        parts.pop("scheduler", None)  # its own function cannot be called
    processes = world_size(parts["plan"]) if "plan" in parts else None
    judged = dict(parts)
    if "model" in parts and "run" in parts and not fresh:
        judged["model"] = _of_the_run(parts["model"], parts["run"].dir)
    problems += check_parts(judged, processes, remedy)
    if "search" not in parts:  # its objectives may be wrong too, and are judged with the other parts
        judged["search"] = parts["search"] = with_objectives_alone(raw.get("search"))
    problems += check_built(judged, {problem.field for problem in problems})
    return (None, problems) if problems else (RecipeConfig(**parts), [])


def wanted_by(task: Any, data: DataConfig) -> dict[str, bool] | None:
    """Columns of the rows that a task learns from -> whether every row must have it; None if it learns from none."""
    return dict(COLUMNS) if data.chat is not None and not takes_chats(task) else wanted_columns(task)


def _of_the_run(model: ModelConfig, run_dir: str) -> ModelConfig:
    """The model with the adapters of the run that is resumed in ``run_dir``."""
    if model.adapter is None or model.adapter.path is None:
        return model
    from ..trainer.saved_model import model_of_run  # imported here, since it needs transformers

    return model_of_run(model, run_dir)


def check(recipe: RecipeConfig, world_size: int) -> list[Problem]:
    """Problems between the parts of a typed recipe that are known before a process starts."""
    return check_parts(vars(recipe), world_size)
