"""Build a run from its recipe, and train it.

The parts are built in this order: data, model, parallelism plan, weights, optimizer, checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..models.build_model import WeightSource, weight_source
from ..models.check_model import model_notes
from ..models.flops import training_flops_per_token
from ..models.quantization.footprint import footprint, logical_count
from ..parallel.device import bind_cores
from ..parallel.mesh import Mesh, build_mesh
from .base_identity import read_base, refuse_other_base
from .callback_list import CallbackList
from .callbacks.callback import Callback
from .callbacks.trial_reports import trial_reports
from .checkpoint.load.open_source import open_source
from .checkpoint.load.weight_reader import checkpoint_weights
from .checkpoint.nodes.find_nodes import Nodes, find_nodes
from .checkpoint.source import Source
from .checkpoint.store import Checkpoints
from .closing_messages import say_how_it_ended
from .collective import on_main, on_ranks
from .component import instantiate, locate
from .component_errors import CONSTRUCTOR, component_errors
from .continuity import continued_corpus, learning_rate_moves, made_of
from .data.corpus import Corpus
from .data.mixture import Mixture
from .ema import Ema
from .future_tokens_check import refuse_encoder
from .ignored_options import ignored_options
from .journal import noted
from .kto_batch_warning import kto_batch_warning
from .load_best import load_best
from .log_files import set_up_logging, tear_down_logging
from .loop import Trainer, TrainResult
from .optimizers import optimizer_factory
from .packing_check import refuse_leaks
from .parameter_groups import OwnOptions, trained_shapes
from .place_model import Placed, fitted, fitting, place
from .preference_reference import Reference, read_reference, start_reference
from .restart import attempt, launch_is_noted, note_launch, saved_by_launch
from .resume import OTHER_RUN, load
from .rollback import roll_back
from .run_folder import folder_notes, open_run_folder, refuse_other_recipe, unwritable, write_recipe
from .run_lock import RunLock
from .saved_model import as_saved, compare_model
from .schedules import build_schedule
from .spinner import stop
from .tasks.task import own_steps
from .trainer_state import Control, batch_since

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..configs.schema import RecipeConfig

log = logging.getLogger("trireme.trainer")


def train(recipe: RecipeConfig, *, resume: str = "auto", fresh: bool = False) -> TrainResult:
    """Train a recipe on the existing ranks (RANK and WORLD_SIZE in the environment, or one process).

    Args:
        resume: ``auto``, ``never``, or a checkpoint or run folder.
        fresh: move an existing run folder aside and start over.

    Raises:
        UserError: something that the user can mend.
    """
    mesh = build_mesh(recipe.plan, recipe.trainer.timeout_minutes, recipe.trainer.join_minutes)
    if recipe.run.bind_cores:
        bind_cores(mesh.rank, mesh.gather_objects)
    run_dir = Path(recipe.run.dir)
    nodes = find_nodes(run_dir, mesh, recipe.checkpoint.shared)
    restarted = attempt() > 0 and mesh.any_flags([nodes.leads and launch_is_noted(run_dir)])[0]
    notes = folder_notes(run_dir) if mesh.is_main else []
    on_ranks(mesh, nodes.leads, lambda: open_run_folder(run_dir, fresh and not restarted, resume))
    lock = RunLock(run_dir)
    on_ranks(mesh, nodes.leads, lock.take)
    handlers = set_up_logging(run_dir, mesh, recipe.run)
    for note in notes:
        log.warning(note)
    trainer = None
    try:
        trainer = build(recipe, mesh, resume, nodes, restarted)
        on_ranks(mesh, nodes.leads, lambda: _keep_recipe(recipe, run_dir, trainer.strategy.run_files()))
        stop()
        with noted(trainer):
            result = trainer.fit()
            _refuse_unsaved(trainer)
        say_how_it_ended(trainer, result, named=resume != "auto")
        strategy = trainer.strategy
    finally:
        if trainer:
            trainer.store.close()
            trainer.batches.close()
        for name, callback in trainer.callbacks.items() if trainer else ():
            with component_errors(f"callbacks.{name}", callback, "close"):
                callback.close()
        tear_down_logging(handlers)
        lock.release()
    # Closed only after success, since after a failure of one rank the others would wait here. Closed last, since
    # launchers end all ranks once the first one has left.
    strategy.close()
    mesh.close()
    return result


def _refuse_unsaved(trainer: Trainer) -> None:
    if trainer.saving.failed:
        why = "the last checkpoint could not be written; what was trained since the one before it is not saved"
        fix = "free space and start the same command again"
        raise UserError(Problem("run.dir", why, fix, str(trainer.run_dir)))


def build(
    recipe: RecipeConfig, mesh: Mesh, resume: str = "never", nodes: Nodes | None = None, restarted: bool = False
) -> Trainer:
    """Build the trainer: data, model on the meta device, plan, weights, optimizer, checkpoint.

    Args:
        nodes: groups of ranks that see the same run folder; None means that all do.
        restarted: these ranks replace others of the same launch, which may have saved newer checkpoints than
            ``resume``.
    """
    automatic = resume == "auto"
    store = Checkpoints(Path(recipe.run.dir) / "checkpoints", recipe.checkpoint, mesh, nodes)
    own = saved_by_launch(store, Path(recipe.run.dir)) if restarted and not automatic else None
    checkpoint = own or store.find(resume)
    if store.nodes.leads and not restarted:
        note_launch(Path(recipe.run.dir), resume)
    source = open_source(checkpoint) if checkpoint else None
    if checkpoint and automatic:
        on_main(mesh, lambda: refuse_other_recipe(recipe, checkpoint))
    recipe = as_saved(recipe, checkpoint, speaks=mesh.is_main)
    batch = _batch(recipe, source)
    corpus = continued_corpus(recipe, mesh, source, automatic)
    reference = start_reference(recipe, mesh, corpus)
    if reference and source:
        reference.find(_saved_reference(source))
    weights = _weights(recipe, source, speaks=mesh.is_main)
    placed = place(recipe, mesh, weights, batch, corpus, noted=reference is not None and source is None)
    placed.state.made_of = made_of(recipe, corpus, placed.state.max_steps)
    if source and placed.base:
        with fitting("--resume", source.path, OTHER_RUN):
            refuse_other_base(placed.base.digest, read_base(source.assets), recipe.model, source.path)
    own = _own_options(recipe, placed.blueprint)
    placed.strategy.attach_optimizer(optimizer_factory(recipe.optimizer, _lr_ratio(recipe), own))
    placed.strategy.set_training(True)
    refuse_encoder(placed.strategy, corpus.facts, str(corpus.task.head), recipe.model.own)
    if recipe.data.separates and placed.strategy.family.packs is None:
        refuse_leaks(placed.strategy, corpus.facts, recipe.data.packing)
    if reference and placed.first is not None:
        reference.make(placed.strategy, placed.first)
    trainer = _trainer(recipe, mesh, placed, corpus, store)
    trainer.reference = reference.reference if reference else None
    if source:
        load(trainer, source)
        if moves := learning_rate_moves(recipe, source, trainer.state.step, trainer.state.max_steps):
            log.info("%s", moves)
    if not automatic and own is None:
        trainer.before_first_step = partial(store.set_later_aside, checkpoint)
    _introduce(trainer, checkpoint)
    trainer.emit("on_init_end")
    return trainer


def _weights(recipe: RecipeConfig, source: Source | None, speaks: bool) -> Callable[[PreTrainedModel], WeightSource]:
    """A function that gives the first weights of a model: those of the checkpoint, or else those of the recipe."""

    adapted = recipe.model.adapter is not None

    def weights(blueprint: PreTrainedModel) -> WeightSource:
        if source is not None:
            compare_model(recipe.model, blueprint, source.path, speaks)
        first = weight_source(recipe.model, blueprint, recipe.seed, speaks) if source is None or adapted else None
        if source is None and first is not None:
            return first
        assert source is not None
        with fitting("--resume", source.path, OTHER_RUN):  # random weights would be overwritten, so none are drawn
            found = checkpoint_weights(source, blueprint, base=first)
            return fitted(found, "--resume", source.path, OTHER_RUN)

    return weights


def _saved_reference(source: Source) -> Reference:
    """The record in a checkpoint of the reference weights, with which answers are compared.

    Raises:
        UserError: there is no record, since another task has written the checkpoint.
    """
    with fitting("--resume", source.path, OTHER_RUN):
        saved = read_reference(source.assets)
    if saved is None:
        why = "does not record the reference weights, which task.reference=start needs"
        fix = "start a run from its weights: trireme export, then model.weights=FOLDER"
        raise UserError(Problem("--resume", why, fix, str(source.path)))
    return saved


def _lr_ratio(recipe: RecipeConfig) -> float:
    """Learning rate of an adapter's second matrix as a multiple of the others'."""
    return recipe.model.adapter.lr_ratio if recipe.model.adapter else 1.0


def _own_options(recipe: RecipeConfig, blueprint: PreTrainedModel) -> OwnOptions | None:
    """Options of the recipe's parameter groups; each group must match a parameter of the whole model."""
    if recipe.parameter_groups is None:
        return None
    own = OwnOptions(recipe.parameter_groups, recipe.optimizer)
    if problems := own.problems(trained_shapes(blueprint)):
        raise UserError(*problems)
    return own


def _batch(recipe: RecipeConfig, source: Source | None) -> dict[str, int]:
    """``TrainerState.batch``: the global batch size, and the step since which it has this value."""
    if source is None:
        return batch_since({}, recipe.trainer.global_batch_size)
    with fitting("--resume", source.path, OTHER_RUN):
        return batch_since(source.progress().trainer, recipe.trainer.global_batch_size)


def _trainer(recipe: RecipeConfig, mesh: Mesh, placed: Placed, corpus: Corpus, store: Checkpoints) -> Trainer:
    """The trainer, made of its parts; nothing is loaded from a checkpoint yet."""
    blueprint, entropy = placed.blueprint, corpus.stats.unigram_entropy
    return Trainer(
        recipe=recipe,
        run_dir=Path(recipe.run.dir),
        mesh=mesh,
        strategy=placed.strategy,
        blueprint=blueprint,
        task=placed.task,
        corpus=corpus,
        tokenizer=corpus.tokenizer,
        schedule=build_schedule(recipe.scheduler, placed.state.max_steps),
        state=placed.state,
        control=Control(),
        go_back=roll_back,
        load_best=load_best if recipe.checkpoint.load_best else lambda trainer: None,
        callbacks=_callbacks(recipe),
        store=store,
        ema=Ema(recipe.ema, placed.strategy) if recipe.ema else None,
        flops_per_token=_flops(placed),
        base=placed.base,
        reference_lines={"unigram entropy": entropy} if entropy else {},
    )


def _flops(placed: Placed) -> float | None:
    """Floating-point operations per token; None for samples that are not counted in tokens."""
    corpus = placed.corpus
    if corpus.unit != "tokens" or corpus.length is None:
        return None
    return training_flops_per_token(placed.blueprint, placed.strategy.family, corpus.attended or corpus.length)


def _keep_recipe(recipe: RecipeConfig, run_dir: Path, others: Mapping[str, str]) -> None:
    try:
        write_recipe(recipe, run_dir, others)
    except OSError as error:
        raise UserError(unwritable(run_dir, error)) from None


def _callbacks(recipe: RecipeConfig) -> CallbackList:
    callbacks = CallbackList()
    for name, component in recipe.callbacks.items():
        with component_errors(f"callbacks.{name}", locate(component["_target_"]), CONSTRUCTOR):
            callbacks[name] = instantiate(component)
        if not isinstance(callbacks[name], Callback):
            why = f"gives a {type(callbacks[name]).__name__}, which is not a callback"
            fix = "derive it from trireme.trainer.callbacks.callback.Callback; docs/extending.md has an example"
            raise UserError(Problem(f"callbacks.{name}._target_", why, fix, component["_target_"]))
    if (reports := trial_reports()) is not None:
        callbacks.add("trial_reports", reports)
    return callbacks


def _introduce(trainer: Trainer, checkpoint: Path | None) -> None:
    recipe, mesh, settings = trainer.recipe, trainer.mesh, trainer.settings
    count = logical_count(trainer.blueprint)
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
    if trainer.corpus.mixture is not None:
        _introduce_mixture(trainer, trainer.corpus.mixture)
    for note in kto_batch_warning(trainer.corpus) if mesh.is_main else ():
        log.warning(note)
    for note in model_notes(recipe.model, recipe.plan.precision) if mesh.is_main else ():
        log.warning(note)
    for note in ignored_options(recipe, trainer.state.max_steps) if mesh.is_main else ():
        log.warning(note)
    for note in trainer.strategy.noise.notes if mesh.is_main and trainer.strategy.noise else ():
        log.warning(note)
    if recipe.model.adapter is not None:
        trained = sum(one.numel() for one in trainer.blueprint.parameters() if one.requires_grad)
        log.info("adapters are trained: %.3f M of them (%.2f %%)", trained / 1e6, 100 * trained / count)
    if recipe.model.quantization is not None:
        found = footprint(trainer.blueprint)
        log.info("the base is quantised (%s): %s", recipe.model.quantization.method, found.line())
    if trainer.averaged:
        _introduce_average(trainer)
    if checkpoint:
        log.info("resuming from %s at step %d", checkpoint, trainer.state.step)
        if trainer.state.step >= trainer.state.stop_at:
            log.info(
                "nothing is left to train: this run has reached step %d; --fresh starts it over", trainer.state.step
            )
    elif recipe.model.weights is None:
        log.info("weights start at random (seed %d)", recipe.seed)
    else:
        log.info("weights start from %s", recipe.model.weights)


def _introduce_mixture(trainer: Trainer, mixture: Mixture) -> None:
    """Log the share of each source, and how often it is repeated in the whole run."""
    batch = trainer.state.batch
    for line in mixture.lines(batch["samples"] + (trainer.state.max_steps - batch["step"]) * batch["size"]):
        log.info("%s", line)
    if trainer.task.coupled:
        log.info(
            "training lines have no loss by source, since this task computes its loss from several samples together"
        )
    if "step" in own_steps(trainer.task):
        log.info("the task's own step gives the loss of all sources together: training lines have no loss by source")


def _introduce_average(trainer: Trainer) -> None:
    """Log that evaluations use averaged weights, and warn if the run is too short for the decay."""
    assert trainer.ema is not None
    decay, steps = trainer.ema.config.decay, trainer.state.max_steps
    log.info("evaluations use the averaged weights (ema.decay=%g); ema.evaluate=false uses the trained ones", decay)
    reach = 1 / (1 - decay)
    if steps < reach and trainer.mesh.is_main:
        log.warning(
            "ema.decay=%g averages over some %d steps, but the run has %d: its average stays near the first weights; "
            "use ema.decay=%.2g",
            *(decay, round(reach), steps, 1 - 5 / max(steps, 10)),
        )
