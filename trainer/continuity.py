"""When a run resumes, check whether its documents, tokens, tokenizer or initial weights have changed since the
checkpoint was written, and report a jump of the learning rate if the number of steps or the schedule has changed.

Their fingerprints are compared, since an unchanged recipe may give other data: its files may have grown, and then a
tokenizer that is trained on them changes too. An automatic resume refuses other documents. A resume from a named
checkpoint continues with a warning, and uses the checkpoint's tokenizer, since the model was trained with it.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import Problem, UserError
from ..parallel.mesh import Mesh
from .checkpoint.layout import RECIPE
from .checkpoint.source import Source
from .collective import on_main
from .data.corpus import Corpus
from .data.tokenizer import load_tokenizer, tokens_like
from .recipe_corpus import recipe_corpus
from .same_places import prints_of_places, weights_print
from .schedules import ScheduleConfig, build_schedule

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

log = logging.getLogger("trireme.trainer")


def made_of(recipe: RecipeConfig, corpus: Corpus, max_steps: int) -> dict[str, Any]:
    """Fingerprints of data and weights, and the length of the run, as checkpoints store them."""
    return {
        **corpus.prints(),
        "weights": weights_print(recipe.model),
        "places": prints_of_places(recipe),
        "max_steps": max_steps,
    }


def continued_corpus(recipe: RecipeConfig, mesh: Mesh, source: Source | None, automatic: bool) -> Corpus:
    """The corpus of a run that resumes from ``source``. A collective call.

    Args:
        automatic: the user has not named the checkpoint, so only the same run may resume.

    Raises:
        UserError: ``automatic``, and documents or tokens differ from the checkpoint's.
    """
    corpus = _open(recipe)
    if source is None:
        return corpus
    saved = source.progress().trainer.get("made_of") or {}
    if not saved:
        log.info("%s has no record of its documents: they are not compared", source.path.name)
    found = [_other_documents(saved, corpus.prints(), source.path)]
    if not found[0] or not automatic:
        corpus, other = _with_its_tokenizer(recipe, corpus, saved, source)
        found += [other, _other_tokens(saved, corpus.prints(), source.path)]
    problems = [problem for problem in found if problem]
    if automatic:
        on_main(mesh, lambda: _refuse(problems))
    for problem in problems:
        log.warning("%s %s: the run continues with the present data", problem.field, problem.why)
    if recipe.model.adapter is None and saved.get("weights") not in (None, weights_print(recipe.model)):
        log.info("model.weights has changed since the run began: it continues with the checkpoint's weights")
    return corpus


def learning_rate_moves(recipe: RecipeConfig, source: Source, step: int, max_steps: int) -> str:
    """A sentence on how the learning rate moves if a run resumes with another length; empty if it does not move, or if
    no step is left."""
    if step >= max_steps:
        return ""
    file = source.path / RECIPE
    then: dict[str, Any] = yaml.safe_load(file.read_text()) if file.is_file() else {}
    saved = source.progress().trainer.get("made_of", {}).get("max_steps")
    steps = saved or (then.get("trainer") or {}).get("max_steps")
    if not steps:
        return ""
    try:
        schedule = ScheduleConfig(**(then.get("scheduler") or dataclasses.asdict(recipe.scheduler)))
        before = build_schedule(schedule, steps)(step)
    except (TypeError, ValueError, ImportError, UserError):  # of another version, or own and gone
        before = build_schedule(recipe.scheduler, steps)(step)
    now = build_schedule(recipe.scheduler, max_steps)(step)
    if abs(before - now) <= 1e-9:
        return ""
    rate = recipe.optimizer.get("lr")
    shown = [
        f"{factor * rate:.3g}" if isinstance(rate, float) else f"{factor:.3g} of its base" for factor in (before, now)
    ]
    length = f"the run has {max_steps} steps instead of {steps}" if steps != max_steps else "the schedule has changed"
    return f"{length}: at step {step} the learning rate moves from {shown[0]} to {shown[1]}"


def _open(recipe: RecipeConfig, tokenizer: Path | None = None) -> Corpus:
    data = recipe.data
    if tokenizer:
        data = dataclasses.replace(data, tokenizer=dataclasses.replace(data.tokenizer, path=str(tokenizer)))
    return recipe_corpus(recipe, data)


def _other_documents(saved: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> Problem | None:
    if saved.get("documents") is None:
        return None
    if saved.get("mixture") != now.get("mixture"):
        changed = f"{_mixture(saved)} then, {_mixture(now)} now"
        why = f"mixes other sources or weights than when {checkpoint.name} was written ({changed})"
        return Problem("data.sources", why, _fix(checkpoint))
    same_media = saved.get("media") in (None, now.get("media"))
    if saved["documents"] == now["documents"] and same_media:
        return None
    counts = [
        " and ".join(f"{n} {what}" for what, n in (prints.get("counts") or {}).items()) for prints in (saved, now)
    ]
    numbers = f" ({counts[0]} then, {counts[1]} now)" if all(counts) and counts[0] != counts[1] else ""
    key = "data.sources" if "mixture" in now else "data.source"
    if saved["documents"] == now["documents"]:
        why = f"names files of images or audio clips that have changed since {checkpoint.name} was written"
        return Problem(key, why, _fix(checkpoint))
    return Problem(key, f"gives other documents than when {checkpoint.name} was written{numbers}", _fix(checkpoint))


def _mixture(prints: dict[str, Any]) -> str:
    """Shares of the sources of a mixture in words."""
    return ", ".join(f"{name} {share:.4g}" for name, share in prints.get("mixture", {}).items()) or "one source"


def _other_tokens(saved: dict[str, Any], now: dict[str, Any], checkpoint: Path) -> Problem | None:
    """The problem if the same documents and tokenizer give other tokens, since library versions have changed."""
    same = all(saved.get(name) == now.get(name) for name in ("documents", "tokenizer"))
    same &= saved.get("media") in (None, now.get("media"))
    if not same or saved.get("tokens") in (None, now.get("tokens")):
        return None
    versions = [saved.get("versions", {}), now["versions"]]
    changed = [f"{name} {versions[0].get(name)} then, {version} now" for name, version in versions[1].items()]
    return Problem(
        "data", f"gives other tokens than when {checkpoint.name} was written ({'; '.join(changed)})", _fix(checkpoint)
    )


def _with_its_tokenizer(
    recipe: RecipeConfig, corpus: Corpus, saved: dict[str, Any], source: Source
) -> tuple[Corpus, Problem | None]:
    """The corpus with the checkpoint's tokenizer, if the recipe trains a tokenizer and would train another one now."""
    if not hasattr(corpus.tokenizer, "backend_tokenizer"):
        return corpus, None
    now, folder = tokens_like(corpus.tokenizer), source.assets
    if saved.get("tokenizer") == now or not folder or not (folder / "tokenizer.json").is_file():
        return corpus, None
    if tokens_like(load_tokenizer(str(folder))) == now:
        return corpus, None
    if recipe.data.tokenizer.path is None and recipe.model.weights is None:
        log.warning("the tokenizer that data.tokenizer trains has changed: going on with that of %s", source.path.name)
        return _open(recipe, folder), None
    why = f"is not the tokenizer that {source.path.name} was trained with"
    return corpus, Problem("data.tokenizer", why, f"set data.tokenizer.path={folder}; or {_fix(source.path)}")


def _fix(checkpoint: Path) -> str:
    return (
        f"restore what was there, start over with --fresh (the old folder is kept), or go on with --resume {checkpoint}"
    )


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise UserError(*problems)
