"""The transformers configuration of Perceiver AR.

The first layer is called *hybrid*: its queries are the latents (the last positions of a text), and its keys are the
prefix and the latents.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..check_field_types import refuse_other_types


@strict
class PerceiverARConfig(PreTrainedConfig):
    """Sizes and options of a Perceiver AR. The defaults are those of the 455M model that was trained on C4."""

    model_type = "perceiver_ar"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (as in every configuration of transformers)

    vocab_size: int = 32000
    hidden_size: int = 1280
    intermediate_size: int = 5120
    hybrid_intermediate_size: int | None = None
    """Inner size of the first layer's feed-forward part; None takes ``intermediate_size``."""
    num_hidden_layers: int = 21
    """All layers, the hybrid first one among them."""
    num_attention_heads: int = 10
    max_position_embeddings: int = 1024
    """Most tokens that the model was trained to read: prefix and latents."""
    max_latents: int = 512
    """Last positions of a text that go through all layers; those before them are the prefix."""
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    """Share of each head's features that positions rotate."""
    rotary_layers: int | None = 2
    """How many of the first layers rotate queries and keys; None for all."""
    absolute_positions: bool = False
    """Whether an embedding of positions is added to that of tokens."""
    final_norm: bool = True
    """Whether there is a norm before the head."""
    head_bias: bool = False
    hybrid_bias: bool = True
    """Whether the output projection of attention has a bias in the first layer. No other projection has one."""
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    """Dropout of a layer's outputs before they are added to the residual stream."""
    initializer_range: float = 0.02
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    @property
    def max_prefix(self) -> int:
        """Most tokens of a prefix."""
        return self.max_position_embeddings - self.max_latents

    @property
    def rotated(self) -> int:
        """Features of a head that positions rotate, in pairs."""
        return int(self.hidden_size // self.num_attention_heads * self.partial_rotary_factor)

    def validate_architecture(self) -> None:
        """Part of the validation of ``strict``."""
        refuse_other_types(self, PerceiverARConfig)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of {self.num_attention_heads} heads; "
                "change one of them"
            )
        if not 0 < self.max_latents <= self.max_position_embeddings:
            raise ValueError(
                f"max_latents={self.max_latents} must be at least 1 and at most max_position_embeddings, which is "
                f"{self.max_position_embeddings}; write a number of this range"
            )
        if not 0 < self.partial_rotary_factor <= 1 or self.rotated < 2 or self.rotated % 2:
            raise ValueError(
                f"partial_rotary_factor={self.partial_rotary_factor} rotates {self.rotated} features of a head, and "
                "they rotate in pairs; write 1 for all of them"
            )
