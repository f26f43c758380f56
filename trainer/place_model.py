"""Build a recipe's model, distribute it over the ranks by the recipe's parallelism plan, and load its weights.

Training and evaluation both begin with this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from ..models.adapters import adapter_names, plan_of
from ..models.build_model import WeightSource, build_on_meta
from ..models.document_attention import attend_within_documents
from ..models.family import ModelFamily
from ..models.head_loss import head_loss
from ..models.neftune import token_embeddings
from ..models.noise import Noise
from ..models.other_families import described
from ..parallel.choose_strategy import build_strategy
from ..parallel.lane_states import LaneStates
from ..parallel.mesh import Mesh
from ..parallel.precision import round_weights
from ..parallel.strategy import Strategy
from .base_identity import Base, BaseDigest, base_of, combined
from .check_steps import check_steps
from .collect_recipe_values import recipe_values
from .data.corpus import Corpus
from .preference_passes import refuse_other_base
from .recipe_corpus import recipe_corpus
from .spinner import say
from .tasks.task import Task, own_steps
from .trainer_state import TrainerState, batch_since

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


@dataclass
class Placed:
    """A model spread over the ranks, with weights but no optimizer, together with its task and corpus."""

    strategy: Strategy
    blueprint: PreTrainedModel
    """The whole model on the meta device."""
    task: Task
    corpus: Corpus
    state: TrainerState
    """State of a run that has not begun."""
    base: Base | None = None
    """The base model of adapters; None for a model without adapters."""
    first: str | None = None
    """Digest of all weights that the model was filled with, and of the scales in an adapter's folder; None unless
    ``place`` was called with ``noted``."""


def place(
    recipe: RecipeConfig,
    mesh: Mesh,
    weights: Callable[[PreTrainedModel], WeightSource],
    batch: dict[str, int] | None = None,
    corpus: Corpus | None = None,
    noted: bool = False,
) -> Placed:
    """Prepare the data, build the model on the meta device, apply the plan, fill in the weights.

    Args:
        weights: returns the source of weights, given the whole model on the meta device.
        batch: ``TrainerState.batch`` for a run that trains; None for an evaluation only.
        corpus: the corpus, if it is open already; None opens the recipe's.
        noted: take a digest of all weights.
    """
    say("preparing data")
    corpus = corpus or recipe_corpus(recipe, recipe.data)
    task = corpus.task
    say("building the model")
    state = _initial_state(recipe, corpus.train_size, batch or batch_since({}, recipe.trainer.global_batch_size))
    problems = check_steps(recipe.trainer, recipe.scheduler, state.max_steps) if batch else []  # equal on all ranks
    if problems:
        raise UserError(*problems)
    model = build_on_meta(recipe.model, str(task.head), corpus.facts)
    # The plan changes the model in place, so an unchanged copy is kept.
    blueprint = copy.deepcopy(model)
    values = recipe_values(
        recipe.trainer, recipe.optimizer, recipe.scheduler, recipe.ema, model.config, recipe.data, state.max_steps
    )
    if recipe.data.separates and not recipe.plan.compile:  # compiled blocks want one shape, which a mask has
        attend_within_documents(model)
    family = described(recipe.model.spec, blueprint)
    strategy = build_strategy(recipe.plan, mesh, family, values)
    asks = task.head_gives_losses() and not own_steps(task)  # such a task reads logits
    strategy.head = head_loss(
        recipe.model.loss, blueprint, family, task.ask if asks else None, mesh.device, mesh.degrees.tensor
    )
    strategy.eval_precision = recipe.trainer.eval_precision
    if corpus.lanes is not None and family.carried:
        strategy.lanes = LaneStates(family.carried, blueprint.config, corpus.lanes.count, mesh)
    _take_steps(strategy, task)
    if not batch and recipe.trainer.eval_weights != "fp32":
        round_weights(model, recipe.trainer.eval_weights)
    if batch:
        strategy.noise = Noise(recipe.model.neftune_alpha, recipe.plan.compile)
        _refuse_neftune(recipe.model.neftune_alpha, blueprint, strategy.family)
    refuse_other_base(task, blueprint)
    source = weights(blueprint)
    adapted = recipe.model.adapter is not None
    strategy.saved_names = adapter_names(blueprint) if adapted else None
    frozen = BaseDigest(blueprint) if adapted else None
    every = BaseDigest(blueprint, every=True) if noted else None
    if mesh.data_rank == 0 and mesh.index("tensor") == 0:  # one rank of each stage notes what all of them read
        for digest in filter(None, (frozen, every)):
            source = digest.watched(source)
    strategy.place(model, source)
    base = base_of(recipe.model, frozen.of_all(mesh)) if frozen else None
    first = _with_scales(recipe, blueprint, every.of_all(mesh)) if every else None
    return Placed(strategy, blueprint, task, corpus, state, base, first)


def _with_scales(recipe: RecipeConfig, blueprint: PreTrainedModel, weights: str) -> str:
    """The digest of all weights, joined with the scales of adapters where a folder gives them and not the recipe."""
    plan = plan_of(blueprint) if recipe.model.adapter and recipe.model.adapter.path else None
    return combined({"weights": weights, "scales": plan.as_text()}) if plan else weights


def _take_steps(strategy: Strategy, task: Task) -> None:
    """Use the task's own ``step`` and ``evaluation_step``, if it has them."""
    steps = own_steps(task)
    if "step" in steps:
        strategy.own_step = lambda model, micro: task.step(model, micro.inputs, micro.targets)
    if "evaluation_step" in steps:
        strategy.own_outputs = lambda model, micro: task.evaluation_step(model, micro.inputs, micro.targets)


@contextmanager
def fitting(field: str, checkpoint: Path, fix: str) -> Iterator[None]:
    """Context that turns errors of a checkpoint that does not fit the recipe into a problem of ``field``."""
    try:
        yield
    except (ValueError, KeyError) as error:
        why = f"does not fit the recipe: {error or type(error).__name__}"
        raise UserError(Problem(field, why, fix, str(checkpoint))) from error


def fitted(source: WeightSource, field: str, checkpoint: Path, fix: str) -> WeightSource:
    """``source`` inside ``fitting``, since its files are only read while weights are loaded."""

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        with fitting(field, checkpoint, fix):
            yield from source(names)

    return weights


def _refuse_neftune(alpha: float | None, blueprint: PreTrainedModel, family: ModelFamily) -> None:
    if alpha is not None and not token_embeddings(blueprint, family):
        why = f"adds noise to embeddings of tokens, and {family.title} has none"
        raise UserError(Problem("model.neftune_alpha", why, "leave it out", alpha))


def _initial_state(recipe: RecipeConfig, train_size: int | None, batch: dict[str, int]) -> TrainerState:
    settings = recipe.trainer
    max_steps = settings.total_steps(train_size, batch["step"], batch["samples"])
    return TrainerState(
        batch=batch, max_steps=max_steps, stop_at=min(settings.stop_at or max_steps, max_steps), train_size=train_size
    )
