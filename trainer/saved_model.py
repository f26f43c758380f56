"""Take a model's configuration and adapter scales from its checkpoint, since the folders that a recipe names may have
changed. Adapters whose base model has another configuration are refused.

A recipe names folders: that of ``model.weights``, whose config.json describes the model, and that of
``model.adapter.path``, which gives layers and scales of adapters. Both may change after a run has begun. Where the
recipe itself has not changed, a checkpoint's own description counts. The base of adapters is in no checkpoint.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..models.adapter_plan import AdapterPlan, read_plan
from ..models.adapters import plan_of
from ..models.config_differences import FILE, other_fields
from ..models.json_file import read_json
from ..models.model_config import ModelConfig, hf_config
from .checkpoint.layout import MANIFEST, MODEL, RECIPE, complete_checkpoints
from .run_folder import differences, saved_recipe, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..configs.schema import RecipeConfig

log = logging.getLogger("trireme.trainer")
OF_THE_PLAN = tuple(
    f"model.adapter.{name}"
    for name in (
        *("path", "rank", "alpha", "targets", "exclude", "modules_to_save", "rslora", "dora"),
        *("rank_pattern", "alpha_pattern"),
    )
)
"""Keys that decide layers and scales of adapters."""
OF_THE_CONFIGURATION = tuple(
    f"model.{name}"
    for name in ("family", "config", "weights", "revision", "architecture", "new_head", "resize_embeddings", "adapter")
)
"""Keys that decide which config.json describes the model."""


def as_saved(recipe: RecipeConfig, checkpoint: Path | None, speaks: bool = True) -> RecipeConfig:
    """The recipe, with the model as the checkpoint describes it unless the recipe itself has changed there.

    Args:
        checkpoint: of any tool; None for a run that begins.
        speaks: log the differences between checkpoint and folder of the weights; one rank does.

    Raises:
        UserError: a file of the checkpoint cannot be read.
    """
    if checkpoint is None:
        return recipe
    return dataclasses.replace(recipe, model=model_as_saved(recipe.model, checkpoint, speaks))


def model_as_saved(model: ModelConfig, checkpoint: Path, speaks: bool = False) -> ModelConfig:
    """The model of a recipe as ``as_saved`` takes it."""
    changed = _changed(model, checkpoint)
    if changed is None:
        return model
    if model.adapter is not None:
        plan = None if _any_of(changed, OF_THE_PLAN) else _plan(checkpoint)
        return model if plan is None else _with(model, adapter=model.adapter.as_planned(plan))
    file = checkpoint / MODEL / FILE
    if model.weights is None or _any_of(changed, OF_THE_CONFIGURATION) or not file.is_file():
        return model
    try:
        found = _with(model, described=read_json(file))
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(checkpoint, f"its {FILE} cannot be read ({error})")) from None
    if speaks:
        _log_configuration(model, checkpoint)
    return found


def model_of_run(model: ModelConfig, run_dir: str) -> ModelConfig:
    """The model of a recipe for checks before a run. If a run goes on, its newest checkpoint describes its adapters."""
    if model.adapter is None or model.adapter.path is None:
        return model
    newest = next(iter(complete_checkpoints(Path(run_dir) / "checkpoints")), None)
    try:
        return model if newest is None else model_as_saved(model, newest)
    except UserError:  # reported when the checkpoint is loaded
        return model


def compare_model(model: ModelConfig, blueprint: PreTrainedModel, checkpoint: Path, speaks: bool = True) -> None:
    """Refuse another base of adapters than that of the checkpoint, by its configuration; warn of all else that the
    recipe gives otherwise.

    Args:
        speaks: log the warnings; one rank does.

    Raises:
        UserError: the base has another configuration, or a file of the checkpoint cannot be read.
    """
    if _changed(model, checkpoint) is None:
        return
    fields, plan = _other_fields(model, blueprint, checkpoint), _plan(checkpoint)
    if fields and model.adapter is not None:
        raise UserError(other_configuration("model.weights", fields, model.weights, checkpoint))
    if fields and speaks:
        log.warning("model.weights differs from %s in %s: model.weights is used", checkpoint, shown(fields))
    now = plan_of(blueprint)
    if speaks and plan is not None and now is not None and (other := _other_parts(now, plan)):
        log.warning("model.adapter differs from %s in %s: the recipe's values are used", checkpoint, other)


def _other_fields(model: ModelConfig, blueprint: PreTrainedModel, checkpoint: Path) -> list[str]:
    """Fields of the weights' folder that differ from the checkpoint's; none that the recipe itself gives."""
    if model.weights is None or not (checkpoint / MODEL / FILE).is_file():
        return []
    try:
        found = other_fields(blueprint.config, checkpoint / MODEL)
    except ValueError as error:
        if model.adapter is None:  # it holds a whole model, and the shapes of its weights are compared
            return []
        raise UserError(_unreadable(checkpoint, str(error))) from None
    return [name for name in found if name not in model.config]


def other_configuration(field: str, fields: list[str], base: str | None, checkpoint: Path) -> Problem:
    """The refusal of a base of adapters whose configuration has changed."""
    why = f"gives a base with another configuration ({shown(fields)}) than the one that the adapters in {checkpoint} "
    fix = "restore its config.json, name that base, or train new adapters (--fresh)"
    return Problem(field, f"{why}were trained on", fix, base)


def _with(model: ModelConfig, **values: object) -> ModelConfig:
    made = copy.copy(model)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def _changed(model: ModelConfig, checkpoint: Path) -> list[str] | None:
    """Keys of the model that differ from the recipe in a checkpoint; None for a checkpoint of another tool."""
    if not (checkpoint / MANIFEST).is_file() or not (checkpoint / RECIPE).is_file():
        return None
    return differences(saved_recipe(checkpoint).get("model"), model, "model")


def _any_of(changed: list[str], keys: tuple[str, ...]) -> bool:
    """Whether a changed key is one of ``keys``, or lies in one; a whole part that has come or gone counts too."""
    whole = {"model", "model.adapter"}
    return any(name in {key, *whole} or name.startswith(f"{key}.") for name in changed for key in keys)


def _plan(checkpoint: Path) -> AdapterPlan | None:
    try:
        return read_plan(checkpoint / MODEL)
    except ValueError as error:
        raise UserError(_unreadable(checkpoint, str(error))) from None


def _unreadable(checkpoint: Path, why: str) -> Problem:
    return Problem("checkpoint", why, "name another checkpoint, for example an older one", str(checkpoint))


def _log_configuration(model: ModelConfig, checkpoint: Path) -> None:
    """Log the fields in which the folder of the weights no longer describes the model of the checkpoint."""
    set_here = [name for name, _ in model.spec.fixed] + (["vocab_size"] if model.resize_embeddings else [])
    try:
        fields = other_fields(hf_config(model), checkpoint / MODEL, set_here)
    except Exception:  # the folder's file may hold anything by now, and is not used
        fields = ["all fields"]
    if fields:
        why = "model.weights has another config.json now (%s): the model is the one that %s describes"
        log.warning(why, shown(fields), checkpoint)


def _other_parts(now: AdapterPlan, then: AdapterPlan) -> str:
    """The differences of two adapter plans, in words; empty if they compute the same."""
    found = ["layers"] if now.ranks.keys() != then.ranks.keys() else []
    both = [path for path in then.ranks if path in now.ranks]
    scaled = next((path for path in both if now.scaling(path) != then.scaling(path)), None)
    found += [f"the scale of {scaled} ({now.scaling(scaled):g}, not {then.scaling(scaled):g})"] if scaled else []
    found += ["lengths of rows (dora)"] if now.dora != then.dora else []
    return " and ".join(found)
