"""Transformer-XL (https://arxiv.org/abs/1901.02860), a causal language model with a memory of earlier segments.

transformers has removed this model. Importing this package registers trireme's classes under the published
``model_type``, ``transfo-xl``. ``AutoConfig``, ``AutoModelForCausalLM`` and ``AutoModelForSequenceClassification`` then
load published weights, and models that trireme has exported.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .xl_config import TransfoXLConfig
from .xl_heads import TransfoXLForSequenceClassification, TransfoXLLMHeadModel
from .xl_model import TransfoXLModel

AutoConfig.register(TransfoXLConfig.model_type, TransfoXLConfig, exist_ok=True)
AutoModel.register(TransfoXLConfig, TransfoXLModel, exist_ok=True)
AutoModelForCausalLM.register(TransfoXLConfig, TransfoXLLMHeadModel, exist_ok=True)
AutoModelForSequenceClassification.register(TransfoXLConfig, TransfoXLForSequenceClassification, exist_ok=True)

__all__ = ["TransfoXLConfig", "TransfoXLForSequenceClassification", "TransfoXLLMHeadModel", "TransfoXLModel"]
