"""From a typed recipe to a trained model: the order in which a run is put together."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import Problem, UserError
from ..models.build import Vocabulary, build_on_meta, weight_source
from ..models.flops import training_flops_per_token
from ..parallel.build import build_strategy
from ..parallel.mesh import Mesh, build_mesh
from .callbacks.callback import Callback
from .checkpoint.layout import STATE, TENSORS
from .checkpoint.store import Checkpoints
from .checkpoint.tensors import read_tensors, tensor_shapes
from .component import instantiate
from .data.corpus import prepare
from .ema import Ema
from .engine import recipe_values
from .logs import set_up_logging, tear_down_logging
from .loop import Trainer, TrainResult
from .optimizers import optimizer_factory
from .run_folder import open_run_folder, refuse_other_recipe, write_recipe
from .schedules import build_schedule
from .state import Control, TrainerState

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

log = logging.getLogger("trireme.trainer")


def train(recipe: RecipeConfig, *, resume: str = "auto", fresh: bool = False) -> TrainResult:
    """Run a recipe on the ranks that exist (RANK and WORLD_SIZE in the environment, or one process).

    Args:
        resume: ``auto``, ``never``, or a checkpoint or run folder.
        fresh: move an existing run folder aside and start over.

    Raises:
        UserError: something that the user can mend.
    """
    mesh = build_mesh(recipe.plan, recipe.trainer.timeout_minutes)
    run_dir = Path(recipe.run.dir)
    _on_main(mesh, lambda: open_run_folder(run_dir, fresh))
    handlers = set_up_logging(run_dir, mesh.is_main)
    trainer = None
    try:
        trainer = build(recipe, mesh, resume)
        _on_main(mesh, lambda: write_recipe(recipe, run_dir, trainer.strategy.run_files()))
        result = trainer.fit()
        if trainer.save_failed:
            raise UserError(
                Problem(
                    "run.dir",
                    "the last checkpoint could not be written; what was trained since the one before it is not saved",
                    "free space and start the same command again",
                    str(run_dir),
                )
            )
        mesh.close()  # only after success: after a failure on one rank the others would wait here
        return result
    finally:
        for callback in trainer.callbacks.values() if trainer else ():
            callback.close()
        tear_down_logging(handlers)


def build(recipe: RecipeConfig, mesh: Mesh, resume: str = "never") -> Trainer:
    """Everything but the training itself: data, model on the meta device, plan, weights, optimizer, checkpoint."""
    run_dir = Path(recipe.run.dir)
    store = Checkpoints(run_dir / "checkpoints", recipe.checkpoint, mesh)
    checkpoint = store.find(resume)
    if checkpoint and resume == "auto":
        _on_main(mesh, lambda: refuse_other_recipe(recipe, checkpoint))

    task = instantiate(recipe.task)
    corpus = prepare(recipe.data, recipe.seed, recipe.trainer, recipe.collator, recipe.model.weights)
    state = _initial_state(recipe, corpus.train_size)
    model = build_on_meta(recipe.model, task.head, vocabulary(corpus.tokenizer))
    # A plan takes the model apart; what it looks like as a whole stays with this one.
    blueprint = copy.deepcopy(model)
    values = recipe_values(
        recipe.trainer, recipe.optimizer, recipe.scheduler, recipe.ema, model.config, state.max_steps
    )
    strategy = build_strategy(recipe.plan, mesh, recipe.model.spec, values)
    strategy.place(model, weight_source(recipe.model, blueprint, recipe.seed))
    strategy.attach_optimizer(optimizer_factory(recipe.optimizer))
    strategy.set_training(True)
    trainer = Trainer(
        recipe=recipe,
        run_dir=run_dir,
        mesh=mesh,
        strategy=strategy,
        blueprint=blueprint,
        task=task,
        corpus=corpus,
        tokenizer=corpus.tokenizer,
        schedule=build_schedule(recipe.scheduler, state.max_steps),
        state=state,
        control=Control(),
        callbacks=_callbacks(recipe),
        store=store,
        ema=Ema(recipe.ema, strategy) if recipe.ema else None,
        flops_per_token=training_flops_per_token(blueprint, recipe.model.spec.embedding, recipe.data.block_size),
        reference_lines={"unigram entropy": corpus.stats.unigram_entropy} if corpus.stats.unigram_entropy else {},
    )
    if checkpoint:
        load(trainer, checkpoint)
    _introduce(trainer, checkpoint)
    return trainer


def load(trainer: Trainer, checkpoint: Path) -> None:
    """Take weights, optimizer, averages, positions and callbacks back from a checkpoint of any plan."""
    distributed = trainer.mesh.world_size > 1
    folder = checkpoint / TENSORS

    def read(tensors: dict[str, Any]) -> None:
        read_tensors(tensors, folder, distributed)

    saved = json.loads((checkpoint / STATE).read_text())
    try:
        trainer.strategy.load(read, tensor_shapes(folder), saved["scalars"])
        if trainer.ema:
            trainer.ema.load(read)
    except (ValueError, KeyError) as error:
        raise UserError(
            Problem(
                "--resume",
                f"does not fit the recipe: {error}",
                "resume with the model and optimizer that wrote it, or start over with --fresh",
                str(checkpoint),
            )
        ) from None
    for name, value in saved["trainer"].items():
        setattr(trainer.state, name, value)
    for name, state in saved["callbacks"].items():
        if name in trainer.callbacks:
            trainer.callbacks[name].load_state_dict(state)


def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def _initial_state(recipe: RecipeConfig, train_size: int | None) -> TrainerState:
    settings = recipe.trainer
    max_steps = settings.total_steps(train_size)
    return TrainerState(
        max_steps=max_steps, stop_at=min(settings.stop_at or max_steps, max_steps), train_size=train_size
    )


def _callbacks(recipe: RecipeConfig) -> dict[str, Callback]:
    return {name: instantiate(component) for name, component in recipe.callbacks.items()}


def _on_main(mesh: Mesh, function: Any) -> None:
    """Run on rank 0; what it refuses, all ranks refuse."""
    refused = None
    if mesh.is_main:
        try:
            function()
        except UserError as error:
            refused = error.problems
    refused = mesh.broadcast_object(refused)
    if refused:
        raise UserError(*refused)  # type: ignore[misc]


def _introduce(trainer: Trainer, checkpoint: Path | None) -> None:
    recipe, mesh, settings = trainer.recipe, trainer.mesh, trainer.settings
    count = sum(parameter.numel() for parameter in trainer.blueprint.parameters())
    accumulation = settings.global_batch_size // (settings.micro_batch_size * mesh.data_size)
    log.info(
        "%s: %.2f M parameters on %d rank(s) (%s, plan %s, %s)",
        recipe.model.spec.title,
        count / 1e6,
        mesh.world_size,
        mesh.device.type,
        recipe.plan.name,
        recipe.plan.precision,
    )
    log.info(
        "%d steps of %d samples (%d micro-batch(es) of %d on each of %d data rank(s))",
        trainer.state.max_steps,
        settings.global_batch_size,
        accumulation,
        settings.micro_batch_size,
        mesh.data_size,
    )
    if checkpoint:
        log.info("resuming from %s at step %d", checkpoint, trainer.state.step)
        if trainer.state.step >= trainer.state.stop_at:
            log.info(
                "nothing is left to train: this run has reached step %d; --fresh starts it over", trainer.state.step
            )
