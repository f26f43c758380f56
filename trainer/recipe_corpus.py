"""Open the data of a recipe as a ``Corpus``, which gives the batches of all its data sets.

The recipe's data section, its task and the configuration of its model determine the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.model_config import hf_config, weights_folder
from .component import instantiate, locate
from .component_errors import CONSTRUCTOR, component_errors
from .data.corpus import Corpus
from .data.data_config import DataConfig
from .data.open_corpus import open_corpus
from .tasks.checked import CheckedTask

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def recipe_corpus(recipe: RecipeConfig, data: DataConfig) -> Corpus:
    """The corpus of ``recipe``, with ``data`` in place of its own data part."""
    beside = str(weights_folder(recipe.model)) if recipe.model.weights is not None else None
    with component_errors("task", locate(recipe.task["_target_"]), CONSTRUCTOR):
        task = CheckedTask(instantiate(recipe.task))
    seed = recipe.seed if data.seed is None else data.seed
    return open_corpus(data, seed, recipe.trainer, task, recipe.collator, beside, hf_config(recipe.model))
