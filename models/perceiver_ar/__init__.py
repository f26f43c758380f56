"""Perceiver AR (https://arxiv.org/abs/2202.07765), a causal language model that reads a long prefix in one layer.

Importing this package registers its classes with transformers. ``AutoConfig`` and ``AutoModelForCausalLM`` then know
``model_type`` ``perceiver_ar``, and load models that trireme has exported.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .perceiver_config import PerceiverARConfig
from .perceiver_model import PerceiverARForCausalLM, PerceiverARModel

AutoConfig.register(PerceiverARConfig.model_type, PerceiverARConfig, exist_ok=True)
AutoModel.register(PerceiverARConfig, PerceiverARModel, exist_ok=True)
AutoModelForCausalLM.register(PerceiverARConfig, PerceiverARForCausalLM, exist_ok=True)

__all__ = ["PerceiverARConfig", "PerceiverARForCausalLM", "PerceiverARModel"]
