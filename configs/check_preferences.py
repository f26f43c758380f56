"""Check recipes that train on preferences (DPO, IPO, KTO): reference model, KTO's batch size, and ``generation``."""

from __future__ import annotations

from ..errors import Problem
from ..models.model_config import ModelConfig
from ..trainer.component import Component, locate
from ..trainer.generation import GenerationConfig
from ..trainer.settings import TrainerConfig
from ..trainer.tasks.preference import Preference


def check_reference(model: ModelConfig, task: Component, trainer: TrainerConfig) -> list[Problem]:
    """Problems of ``task.reference``, and of a global batch that is too small for KTO's estimate."""
    kind = _kind(task)
    if kind is None:
        return []
    problems, reference = [], task.get("reference", "start")
    if reference == "adapter_off" and model.adapter is None:
        why = "compares with the model without its adapters, but model.adapter is null"
        problems.append(Problem("task.reference", why, "add adapter=lora, or set task.reference=start", reference))
    elif reference == "adapter_off" and model.adapter is not None and model.adapter.modules_to_save:
        why = "compares with the model without its adapters, but fully trained modules (modules_to_save) stay changed"
        fix = "set task.reference=start, or leave model.adapter.modules_to_save out"
        problems.append(Problem("task.reference", why, fix, reference))
    if kind.estimates and trainer.global_batch_size < 2:
        why = "is too small for task=kto, which estimates a mean over the answers of a step"
        problems.append(
            Problem("trainer.global_batch_size", why, "use at least 2; 32 is usual", trainer.global_batch_size)
        )
    return problems


def check_written_preferences(generation: GenerationConfig | None, task: Component) -> list[Problem]:
    """The problem of a recipe that generates texts for rows that hold two answers each."""
    if generation is None or _kind(task) is None:
        return []
    why = "compares each generated text with one answer, and a row of preferences has two"
    return [Problem("generation", why, "leave it out; the callback sample writes texts for prompts of your own")]


def _kind(task: Component) -> type[Preference] | None:
    """The class of the recipe's task, if it is one of preferences."""
    try:
        found = locate(task["_target_"])
    except Exception:  # reported by the check of components
        return None
    return found if isinstance(found, type) and issubclass(found, Preference) else None
