"""Compute how many frames an audio model outputs for a waveform, by the method of its class in transformers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch


def output_frames(config: Any) -> Callable[[Any], Any]:
    """The function from lengths of a model's input to numbers of frames in its output.

    Args:
        config: transformers configuration of the model.
    """
    stand_in = SimpleNamespace(config=config)  # the rule needs the configuration only
    for kind in _classes(config):
        if hasattr(kind, "_get_feat_extract_output_lengths"):
            method = kind._get_feat_extract_output_lengths
            return lambda lengths: method(stand_in, torch.as_tensor(lengths))
    return lambda lengths: lengths


def _classes(config: Any) -> list[Any]:
    from transformers.models.auto import modeling_auto

    mappings = (modeling_auto.MODEL_FOR_CTC_MAPPING, modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING)
    return [mapping[type(config)] for mapping in mappings if type(config) in mapping]
