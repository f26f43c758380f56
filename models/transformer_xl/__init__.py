"""Transformer-XL (https://arxiv.org/abs/1901.02860), a causal language model with a memory of earlier segments.

transformers has removed it. Importing this package registers it under its published ``model_type``, ``transfo-xl``:
``AutoConfig``, ``AutoModelForCausalLM`` and ``AutoModelForSequenceClassification`` then load published weights and what
trireme exports.
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
