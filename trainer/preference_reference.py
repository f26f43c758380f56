"""Compute the reference of preference losses (DPO, IPO, KTO): log-probabilities of all answers under the initial
weights.

They are computed once, before training and under the run's own plan, and stored in the cache. Their file name in the
cache is made from a digest of all weights, of the answers' tokens and labels, and of the model's configuration,
rounding and precision. So a resume, another plan and a second run find them again, and those of other weights are never
used. There is no second copy of the model: a new run computes them with its own weights. If a resumed run does not find
them in the cache, it first loads its initial weights, computes them, and then loads its checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from ..errors import Problem, UserError
from ..models.build_model import weight_source
from ..models.json_file import read_json
from ..parallel.micro_batch import MicroBatch
from .data.cache import cache_root
from .data.content_stamp import hash_json
from .data.corpus_stats import digest
from .data.loader import evaluation_batches
from .data.prepare_rows import row_hashes
from .place_model import place
from .preference_passes import REFERENCE, preference_in, reading

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from ..parallel.mesh import Mesh
    from ..parallel.strategy import Strategy
    from .data.corpus import Corpus
    from .data.rows_corpus import RowSamples

log = logging.getLogger("trireme.trainer")
VERSION = 1
FILE = "reference.json"
"""File of a checkpoint's folder ``model`` that names the reference."""
NOT_IN_OUTPUTS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
"""Values of a model's configuration that do not change what it computes."""


@dataclass(frozen=True)
class Reference:
    """The record in a checkpoint of the reference weights."""

    digest: str
    weights: str | None
    """``model.weights`` of the run."""
    revision: str | None = None


def write_reference(reference: Reference, folder: Path) -> None:
    """Write the record of the reference into a checkpoint's folder ``model``."""
    (folder / FILE).write_text(json.dumps(vars(reference), indent=2) + "\n")


def read_reference(assets: Path | None) -> Reference | None:
    """The record of the reference in a checkpoint; None if there is none.

    Raises:
        ValueError: the file cannot be read.
    """
    if assets is None or not (assets / FILE).is_file():
        return None
    try:
        values: dict[str, Any] = read_json(assets / FILE)
        return Reference(values["digest"], values["weights"], values.get("revision"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its {FILE} cannot be read ({error})") from None


class StartReference:
    """Gives samples the log-probabilities of their answers under the first weights; methods are collective calls."""

    def __init__(self, recipe: RecipeConfig, mesh: Mesh, corpus: Corpus, sets: Collection[str] | None = None) -> None:
        """
        Args:
            sets: names of the sets that are read; None takes all that training reads.
        """
        self.recipe, self.mesh, self.corpus = recipe, mesh, corpus
        self.rows = [rows for rows in _rows_of(corpus, sets) if len(rows)]
        self.reference: Reference | None = None

    def make(self, strategy: Strategy, found: str) -> None:
        """Take the log-probabilities from the cache, or compute them by the model, which holds the first weights.

        Args:
            found: digest of these weights.
        """
        self.reference = Reference(found, self.recipe.model.weights, self.recipe.model.revision)
        if self._cached(found):
            return
        with reading(strategy):
            for rows in self.rows:
                if REFERENCE not in rows.beside:
                    self._compute(strategy, rows, found)

    def find(self, saved: Reference | None) -> None:
        """Take the log-probabilities from the cache, or else place the first weights once more, and compute them.

        Args:
            saved: the record in the checkpoint; None takes the weights that the recipe names.

        Raises:
            UserError: the recipe gives other weights than those that the run began with.
        """
        if saved is not None and self._cached(saved.digest):
            self.reference = saved
            return
        log.info("the reference log-probabilities are not in the cache: the first weights are loaded to compute them")
        recipe = self.recipe
        placed = place(
            recipe,
            self.mesh,
            lambda blueprint: weight_source(recipe.model, blueprint, recipe.seed, self.mesh.is_main),
            corpus=self.corpus,
            noted=True,
        )
        assert placed.first is not None
        if saved is not None and saved.digest != placed.first:
            then = f"those of {saved.weights}" if saved.weights else "random weights of a seed"
            why = f"gives other weights than the run began with ({then}), with which its answers are compared"
            fix = "name those weights again, or start over with --fresh"
            raise UserError(Problem("model.weights", why, fix, recipe.model.weights))
        self.make(placed.strategy, placed.first)
        del placed
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- the cache ------------------------------------------------------------------------------------------------

    def _cached(self, found: str) -> bool:
        """Take the log-probabilities that the cache holds; returns whether none is missing."""
        for rows in self.rows:
            values = self.mesh.broadcast_object(self._read(rows, found) if self.mesh.is_main else None)
            if isinstance(values, np.ndarray):
                rows.beside[REFERENCE] = values
        whole = all(REFERENCE in rows.beside for rows in self.rows)
        if whole and self.rows:
            log.info("log-probabilities of the reference are taken from the cache")
        return whole

    def _read(self, rows: RowSamples, found: str) -> np.ndarray | None:
        try:
            values = np.load(self._path(rows, found), allow_pickle=False)
        except (OSError, ValueError):
            return None
        return values if values.shape == (len(rows), 2) and np.isfinite(values).all() else None

    def _write(self, rows: RowSamples, found: str, values: np.ndarray) -> None:
        path = self._path(rows, found)
        scratch = path.with_name(f"{path.stem}.{os.getpid()}.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(scratch, values, allow_pickle=False)
            scratch.replace(path)
        except OSError as error:
            log.warning("log-probabilities of the reference are not kept in the cache: %s", error)

    def _path(self, rows: RowSamples, found: str) -> Path:
        made = rows.digest or digest([row_hashes(rows.rows)])
        config = {k: v for k, v in self._config().items() if k not in NOT_IN_OUTPUTS}
        name = hash_json([VERSION, found, made, config, self._beside(), self.recipe.plan.precision])[:24]
        return cache_root(self.recipe.data.cache_dir) / "references" / f"{name}.npy"

    def _beside(self) -> list[Any]:
        """Further settings that the outputs depend on: the scale of adapters, and how weights are rounded."""
        model = self.recipe.model
        return [asdict(each) if each else None for each in (model.adapter, model.quantization, model.qat)]

    def _config(self) -> dict[str, Any]:
        from ..models.model_config import hf_config

        return json.loads(hf_config(self.recipe.model).to_json_string(use_diff=True))

    # -- computing ------------------------------------------------------------------------------------------------

    def _compute(self, strategy: Strategy, rows: RowSamples, found: str) -> None:
        began, values = time.monotonic(), np.full((len(rows), 2), np.nan, np.float32)
        for part in self.mesh.gather_objects(self._own_logps(strategy, rows)):
            for places, column, logps in part:
                values[places, column] = logps
        if not np.isfinite(values).all():
            number = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
            why = f"gives an answer a log-probability that is not finite ({rows.samples.show(rows.rows[number])})"
            raise UserError(Problem("model.weights", why, "correct the weights, or set plan.precision=fp32"))
        rows.beside[REFERENCE] = values
        if self.mesh.is_main:
            self._write(rows, found, values)
        log.info("log-probabilities of %d samples under the reference took %.1f s", len(rows), time.monotonic() - began)

    def _own_logps(self, strategy: Strategy, rows: RowSamples) -> list[tuple[np.ndarray, int, np.ndarray]]:
        """This rank's part: places of samples, number of the text, log-probabilities of the answers."""
        task, found = preference_in(self.corpus.task), []
        assert task is not None

        def keep(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
            logps = task.log_probabilities(outputs, micro.targets)[0][:, 0].float().cpu().numpy()
            places, size = micro.samples.cpu().numpy(), micro.per_sample
            for row in range(size):
                real = places[row::size] >= 0
                found.append((places[row::size][real], column + row, logps[row::size][real]))
            return {}

        column = 0
        strategy.evaluate(self._batches(rows), keep)
        if task.estimates:  # the second texts are in ``MicroBatch.beside``
            column = 1
            strategy.evaluate((micro.beside for micro in self._batches(rows) if micro.beside is not None), keep)
        return found

    def _batches(self, rows: RowSamples) -> Iterator[MicroBatch]:
        """The samples of a set, the longest first, so that little is padded."""
        lengths = np.zeros(len(rows)) if rows.lengths is None else np.asarray(rows.lengths)
        order = np.argsort(-lengths, kind="stable").tolist()
        mesh, size = self.mesh, self.corpus.micro_batch_size
        ranks = {"data_rank": mesh.data_rank, "data_size": mesh.data_size}
        return evaluation_batches(Subset(rows, order), self.corpus.collator, micro_batch_size=size, **ranks)


def start_reference(
    recipe: RecipeConfig, mesh: Mesh, corpus: Corpus, sets: Collection[str] | None = None
) -> StartReference | None:
    """The start reference of the recipe's task; None if the task has no reference, or computes it in each step."""
    task = preference_in(corpus.task)
    return StartReference(recipe, mesh, corpus, sets) if task is not None and task.reference == "start" else None


def _rows_of(corpus: Any, sets: Collection[str] | None) -> Iterator[RowSamples]:
    """The sets of a corpus, or of each source of a mixture."""
    for number, part in enumerate(getattr(corpus, "parts", [corpus])):
        if not hasattr(part, "row_sets"):
            why = "keeps log-probabilities of rows, and a loader of your own gives none"
            raise UserError(Problem("task.reference", why, "set task.reference=adapter_off, with adapters", "start"))
        known = part.row_sets()
        for name in known if sets is None else sets:
            if name in known or number == 0:
                yield known[name] if name in known else part.eval_set(name)
