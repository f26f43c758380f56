"""Load a recipe's model with trained weights under any parallelism plan, for evaluations and predictions.

No optimizer and no run folder is created. Under ZeRO-3 and FSDP, every rank holds only its shard of the weights ("ZeRO
inference").
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from ..models.build_model import WeightSource, weight_source
from ..parallel.mesh import Mesh, build_mesh
from .base_identity import read_base, refuse_other_base
from .checkpoint.layout import MANIFEST, checkpoints_at, verify
from .checkpoint.load.find_checkpoint import newest_usable
from .checkpoint.load.open_source import open_source
from .checkpoint.load.weight_reader import checkpoint_weights, stored_weights, usable_checkpoint
from .checkpoint.nodes.find_nodes import find_nodes
from .checkpoint.nodes.node_files import NodeFiles
from .collective import Collective, on_main
from .data.corpus import Corpus
from .data.data_config import HELD_OUT
from .data.further_sets import source_of
from .data.tokenizer import load_tokenizer, tokens_like
from .evaluation import Evaluation
from .generation import GenerationConfig
from .log_files import set_up_logging, tear_down_logging
from .place_model import Placed, fitted, fitting, place
from .preference_reference import read_reference, start_reference
from .recipe_corpus import recipe_corpus
from .records import Records
from .run_folder import changed_keys, weights_at
from .saved_model import as_saved, compare_model
from .set_metrics import set_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..configs.schema import RecipeConfig

log = logging.getLogger("trireme.trainer")
OTHER_MODEL = "evaluate with the model that wrote it"


@dataclass
class Trained:
    """A model with trained weights, spread over the ranks, and the data of its recipe."""

    recipe: RecipeConfig
    mesh: Mesh
    placed: Placed
    origin: dict[str, Any]
    """``weights`` (their folder or hub id), and the ``step`` of the checkpoint."""

    def metrics(
        self, name: str, limit: int | None, writes: GenerationConfig | None, records: Records | None = None
    ) -> dict[str, float]:
        """Metrics of a set by their full names, equal on all ranks.

        Args:
            limit: samples, from the first on; None takes all.
            writes: how texts are written; None writes none.
            records: takes a record of every sample.
        """
        placed = self.placed
        placed.strategy.set_training(False)
        evaluation = Evaluation(placed.strategy, placed.task, placed.corpus.tokenizer, self.recipe.seed, writes)
        return set_metrics(evaluation, placed.corpus, name, limit, records)


@contextmanager
def trained(recipe: RecipeConfig, checkpoint: str | None, ema: bool, on: str | None) -> Iterator[Trained]:
    """Context with a recipe's trained model on the existing ranks (RANK and WORLD_SIZE in the environment, or one
    process).

    Args:
        checkpoint: a checkpoint or run folder; None takes the newest checkpoint of the recipe's run folder, or
            ``model.weights`` if there is none.
        ema: take the averaged weights of the checkpoint.
        on: the set that will be read; None stands for those that training evaluates.

    Raises:
        UserError: something that the user can mend.
    """
    mesh = build_mesh(recipe.plan, recipe.trainer.timeout_minutes, recipe.trainer.join_minutes)
    handlers = set_up_logging(None, mesh, recipe.run)
    try:
        found = Trained(recipe, mesh, *_placed(recipe, mesh, checkpoint, ema, on))
        yield found
        found.placed.strategy.close()
        mesh.close()  # only after success, since after a failure of one rank the others would wait here
    finally:
        tear_down_logging(handlers)


def _placed(
    recipe: RecipeConfig, mesh: Mesh, named: str | None, ema: bool, on: str | None
) -> tuple[Placed, dict[str, Any]]:
    """The model with the weights of a checkpoint, and where they come from."""
    if on not in (None, HELD_OUT):
        source_of(recipe.data, on)
    # A stream prepares held-out data only if an evaluation is due.
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, eval_at_end=True))
    _complete_on_all_nodes(Path(os.path.expanduser(named or recipe.run.dir)), mesh, recipe.checkpoint.shared)
    found: list[Path | None] = []
    on_main(mesh, lambda: found.append(_verified(recipe, named, ema)))
    path = mesh.broadcast_object(str(found[0]) if found and found[0] else None)
    checkpoint = Path(path) if isinstance(path, str) else None
    recipe = as_saved(recipe, checkpoint, mesh.is_main)

    def weights(blueprint: PreTrainedModel) -> WeightSource:
        adapted, speaks = recipe.model.adapter is not None, mesh.is_main
        if checkpoint is not None:
            compare_model(recipe.model, blueprint, checkpoint, speaks)
        first = weight_source(recipe.model, blueprint, recipe.seed, speaks) if checkpoint is None or adapted else None
        if checkpoint is None and first is not None:
            return first
        assert checkpoint is not None
        with fitting("--checkpoint", checkpoint, OTHER_MODEL):
            source = checkpoint_weights(open_source(checkpoint), blueprint, ema, first)
            return fitted(source, "--checkpoint", checkpoint, OTHER_MODEL)

    corpus = recipe_corpus(recipe, recipe.data)
    reference = start_reference(recipe, mesh, corpus, [on] if on else corpus.eval_sets)
    if reference and checkpoint:
        with fitting("--checkpoint", checkpoint, OTHER_MODEL):
            saved = read_reference(open_source(checkpoint).assets)
        reference.find(saved)
    placed = place(recipe, mesh, weights, corpus=corpus, noted=reference is not None and checkpoint is None)
    if reference and placed.first is not None:
        reference.make(placed.strategy, placed.first)
        placed.strategy.set_training(False)
    if checkpoint and placed.base:
        with fitting("--checkpoint", checkpoint, OTHER_MODEL):
            saved = read_base(open_source(checkpoint).assets)
            refuse_other_base(placed.base.digest, saved, recipe.model, checkpoint)
    _refuse_nothing(placed.corpus, [on] if on else placed.corpus.eval_sets)
    _check_tokenizer(placed.corpus, checkpoint)
    source = str(checkpoint or recipe.model.weights)
    log.info("weights of %s on %d rank(s) (plan %s)", source, mesh.world_size, recipe.plan.name)
    result: dict[str, Any] = {"weights": source}
    if checkpoint:
        with suppress(ValueError):  # weights alone have no step
            result["step"] = open_source(checkpoint).progress().trainer["step"]
    return placed, result


def _complete_on_all_nodes(folder: Path, mesh: Mesh, shared: bool | None) -> None:
    """Copy the newest complete checkpoint to all machines, if they have no common disk and each holds a part."""
    here = checkpoints_at(folder)
    seen = mesh.gather_objects((here, bool(here) and verify(here[0], contents=False) is None))
    if all(entry == seen[0] for entry in seen) and (seen[0][1] or not here):
        return
    candidates = sorted({path for paths, _ in seen for path in paths}, reverse=True)
    nodes = find_nodes(candidates[0].parent, mesh, shared)
    if nodes.count > 1:
        usable, reason = newest_usable(candidates, NodeFiles(Collective(mesh), nodes), "--checkpoint")
        if usable is None:
            raise UserError(Problem("--checkpoint", reason or "", "name another that is whole", str(folder)))


def _verified(recipe: RecipeConfig, named: str | None, ema: bool) -> Path | None:
    folder = weights_at(recipe, named, ema)
    if folder is None:
        return None
    checkpoint = usable_checkpoint(folder, "--checkpoint" if named is not None else "run.dir")
    with fitting("--checkpoint", checkpoint, "name a whole one"):
        stored_weights(open_source(checkpoint), ema)  # refuses --ema if the checkpoint has no averages
    own = (checkpoint / MANIFEST).is_file()
    changed = changed_keys(recipe, checkpoint, ("seed", "data")) if own else []
    if changed:
        log.warning(
            "the checkpoint was trained with other data (changed: %s), which may contain this held-out set",
            ", ".join(changed),
        )
    return checkpoint


def _refuse_nothing(corpus: Corpus, sets: list[str]) -> None:
    """Refuse to evaluate on a held-out set that is empty."""
    if not sets or (HELD_OUT in sets and HELD_OUT not in corpus.eval_sets):
        fix = "set data.held_out=0.05, or name a data.eval_source"
        raise UserError(Problem("data.held_out", "is 0, so there is nothing to evaluate on", fix))


def _check_tokenizer(corpus: Corpus, checkpoint: Path | None) -> None:
    """Refuse a corpus with another tokenizer than the checkpoint's."""
    folder = open_source(checkpoint).assets if checkpoint else None
    if (
        folder
        and (folder / "tokenizer.json").is_file()
        and hasattr(corpus.tokenizer, "backend_tokenizer")
        and tokens_like(load_tokenizer(str(folder))) != tokens_like(corpus.tokenizer)
    ):
        fix = f"set data.tokenizer.path={folder}"
        raise UserError(Problem("data.tokenizer", "is not the tokenizer of the checkpoint", fix))
