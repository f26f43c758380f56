"""Find the quantisation format of stored weights, for recipes with ``model.quantization.method: stored``."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from ...errors import Problem, UserError
from ..model_config import ModelConfig, config_values, weights_folder
from .check_quantization import missing
from .quantization_config import STORED
from .stored_quantization import StoredQuantization, stored_quantization


def stored_quantization_of(model: ModelConfig) -> StoredQuantization | None:
    """How ``model.weights`` are quantised; None if the recipe does not take them as they are stored.

    Raises:
        UserError: they are not quantised, or in a way that is not read.
    """
    config = model.quantization
    if config is None or config.method != STORED:
        return None
    try:
        found = stored_quantization(config_values(model), weights_folder(model))
    except ValueError as error:
        why, _, fix = str(error).partition("; ")
        raise UserError(Problem("model.weights", why, fix, model.weights)) from None
    if found is None:
        why = "needs quantised weights, but config.json in the folder of model.weights names no quantisation"
        raise UserError(
            Problem("model.quantization.method", why, "let the run quantise them: quantization=nf4", STORED)
        )
    if found.method == "bitsandbytes" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(Problem("model.weights", *missing("bitsandbytes"), model.weights))
    return replace(found, threshold=config.threshold)
