"""Small models that train with random noise (dropout, layer drop, stochastic depth, NEFTune), and inputs for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from trireme.models.attach_noise import add_noise, remove_noise
from trireme.models.family import families
from trireme.models.find_blocks import blocks_of
from trireme.models.noise import Noise
from trireme.models.other_families import described, other_family

TEXT = {"vocab_size": 100, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 1}
BERT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
BART = {f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 64))}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


@dataclass(frozen=True)
class Kind:
    """An architecture of transformers."""

    head: str
    config: dict[str, Any]
    inputs: str = "tokens"


MODELS = {
    "gpt2": Kind("CausalLM", {**TEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neox": Kind("CausalLM", {**TEXT, **BERT, "num_hidden_layers": 2, "hidden_dropout": 0.1}),
    "opt": Kind(
        "CausalLM",
        {**TEXT, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
        | {"ffn_dim": 64, "attention_dropout": 0.1, "layerdrop": 0.3},
    ),
    "bert": Kind("MaskedLM", {**TEXT, **BERT, "num_hidden_layers": 2}),
    "albert": Kind(
        "MaskedLM",
        {**TEXT, **BERT, "embedding_size": 16, "num_hidden_layers": 4}
        | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    ),
    "t5": Kind("Seq2SeqLM", {**TEXT, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, "both"),
    "bart": Kind(
        "Seq2SeqLM",
        {**TEXT, **BART, **HEADS, "d_model": 32, "attention_dropout": 0.1, "activation_dropout": 0.1}
        | {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.3},
        "both",
    ),
    "vit": Kind(
        "ImageClassification",
        {**BERT, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4, "hidden_dropout_prob": 0.1}
        | {"attention_probs_dropout_prob": 0.1},
        "images",
    ),
    "swin": Kind(
        "ImageClassification",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
        | {"drop_path_rate": 0.5, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
        "images",
    ),
    "wav2vec2": Kind(
        "AudioClassification",
        {**BERT, "num_hidden_layers": 2, "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 8]}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "feat_extract_norm": "layer"}
        | {"do_stable_layer_norm": True, "layerdrop": 0.4, "apply_spec_augment": False},
        "audio",
    ),
}


@dataclass
class Noisy:
    """A model in training, with its noise at step 0 of seed 1, and inputs of four samples."""

    model: Any
    noise: Noise
    inputs: dict[str, Tensor]
    blocks: list[nn.Module] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: dict[str, Tensor], family: Any = None, alpha: float | None = None) -> Noisy:
        noise, found = Noise(alpha), described(family, model) if family else other_family("none")  # type: ignore[arg-type]
        add_noise(model, found, noise)
        noise.begin_step(1, 0)
        return cls(model.train(), noise, inputs, blocks_of(model, found))

    @property
    def first_weight(self) -> nn.Parameter:
        return next(self.blocks[0].parameters())

    def outputs(self, samples: Tensor, rows: Iterable[int]) -> Tensor:
        """First output of the model for some of the inputs' rows."""
        chosen = list(rows)
        return self.model_outputs(samples[chosen], **{name: value[chosen] for name, value in self.inputs.items()})

    def model_outputs(self, samples: Tensor, **inputs: Tensor) -> Tensor:
        with self.noise.running(self.noise.keys_of(samples)):
            return self.model(**inputs)[0]

    def end(self) -> Any:
        """The model without its noise."""
        remove_noise(self.model)
        return self.model


def noisy(kind: str, attention: str = "eager", **fields: Any) -> Noisy:
    """A model of ``MODELS``, always with the same weights.

    Args:
        fields: fields of the model's configuration.
    """
    import transformers

    made = MODELS[kind]
    config = AutoConfig.for_model(kind, **{**made.config, **fields}, use_cache=False)
    torch.manual_seed(0)
    factory = getattr(transformers, f"AutoModelFor{made.head}")
    model = factory.from_config(config, attn_implementation=attention)
    family = next((one for one in families().values() if one.model_type == kind), None)
    texts = made.inputs in ("tokens", "both")
    return Noisy.of(model, _inputs(made.inputs), family or other_family(kind), 5.0 if texts else None)


def _inputs(kind: str) -> dict[str, Tensor]:
    if kind == "images":
        return {"pixel_values": torch.randn(4, 3, 16, 16)}
    if kind == "audio":
        return {"input_values": torch.randn(4, 800)}
    tokens = torch.randint(3, 100, (4, 12))
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens[:, :7]} if kind == "both" else {})
