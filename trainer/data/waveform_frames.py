"""Count the frames that a model makes of a sound, by the rule of its own class in transformers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

METHOD = "_get_feat_extract_output_lengths"
"""Method of the speech models of transformers; it needs their configuration only."""


def output_frames(config: Any) -> Callable[[Any], Any]:
    """The function from lengths of a model's input to numbers of frames in its output.

    Args:
        config: transformers configuration of the model.
    """
    method = next((getattr(kind, METHOD) for kind in _classes(config) if hasattr(kind, METHOD)), None)
    if method is None:
        return lambda lengths: lengths
    stand_in = SimpleNamespace(config=config)
    return lambda lengths: method(stand_in, torch.as_tensor(lengths))


def _classes(config: Any) -> list[Any]:
    from transformers.models.auto import modeling_auto

    mappings = (modeling_auto.MODEL_FOR_CTC_MAPPING, modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING)
    return [mapping[type(config)] for mapping in mappings if type(config) in mapping]
