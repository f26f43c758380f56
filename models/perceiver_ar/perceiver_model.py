"""The model classes of Perceiver AR, with and without a language model head, and generation of text.

The last positions of a text are called latents, and the text before them is the prefix. Texts are padded on the left,
before the prefix, so the latents are always the last positions of the tensor. A padded text has the same logits as the
text alone. Only the latents have logits: [batch, latents, vocabulary].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .perceiver_config import PerceiverARConfig
from .perceiver_layers import PerceiverARLayer


class PerceiverARPreTrainedModel(PreTrainedModel):
    """Settings for transformers that both classes share."""

    config_class = PerceiverARConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PerceiverARLayer"]  # noqa: RUF012
    _supports_sdpa = True


class PerceiverARModel(PerceiverARPreTrainedModel):
    """Embedding, layers and norm."""

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        places = config.max_position_embeddings
        self.embed_positions = nn.Embedding(places, width) if config.absolute_positions else None
        self.layers = nn.ModuleList(PerceiverARLayer(config, number) for number in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width, config.layer_norm_eps) if config.final_norm else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        num_latents: int | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the latents [rows, latents, width].

        Args:
            input_ids: [rows, tokens]; with a cache, tokens that follow those in it, all of them latents.
            attention_mask: [rows, all tokens], 0 at padding, which stands on the left.
            position_ids: [rows, all tokens]; None counts from each row's first token. Tokens may be left out of a
                prefix, and the others then keep their positions.
            num_latents: how many of the last positions are latents; None takes as many as there may be.
        """
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past, kept = _lengths(past_key_values, self.config.num_hidden_layers)
        new = hidden.shape[1]
        known = position_ids if attention_mask is None else attention_mask
        total = past + new if known is None else known.shape[1]  # later stages of a pipeline get the latents alone
        latents = new if past else min(num_latents or self.config.max_latents, total)
        positions = _positions(attention_mask, total, hidden.device) if position_ids is None else position_ids
        if self.embed_positions is not None:
            places = positions[:, -new:].clamp(max=self.config.max_position_embeddings - 1)
            hidden = hidden + self.embed_positions(places)
        hybrid_mask, latent_mask = self._masks(attention_mask, latents, total, kept + latents, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, latents, positions, hybrid_mask, latent_mask, past_key_values)
        hidden = hidden if self.norm is None else self.norm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _masks(
        self, real: Tensor | None, asking: int, total: int, latents: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Masks of the keys that new latents see [rows or 1, 1, asking, keys], in the hybrid layer and in the others.

        Args:
            asking: new latents, the last positions.
            total: all positions, those in a cache among them.
            latents: new latents, and those in a cache.
        """
        places = torch.arange(total, device=device)
        own = places[total - asking :, None]
        seen = (places <= own)[None, None]
        padded = False
        if real is not None:
            # Padding sees itself, since a softmax over nothing has no value.
            seen = seen & (real[:, None, None] != 0) | (places == own)
            padded = not bool(real[:, total - latents :].all())
        plain = not padded and asking in (1, latents) and self.config._attn_implementation != "eager"
        return seen, None if plain else seen[..., total - latents :]


class PerceiverARForCausalLM(PerceiverARPreTrainedModel, GenerationMixin):
    """Perceiver AR that predicts the token after each latent."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: PerceiverARConfig) -> None:
        super().__init__(config)
        self.model = PerceiverARModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        num_latents: int | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the latents [rows, latents, words]; arguments as of ``PerceiverARModel``.

        Args:
            labels: [rows, tokens], beside their tokens, -100 where there is none; those of a prefix are not used.
            logits_to_keep: only so many of the last logits; 0 gives all.
        """
        outputs = self.model(
            input_ids, attention_mask, position_ids, inputs_embeds, past_key_values, use_cache, num_latents
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            wanted = labels[:, -logits.shape[1] :]
            loss = self.loss_function(logits=logits, labels=wanted, vocab_size=self.config.vocab_size, **others)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    # -- writing texts -----------------------------------------------------------------------------------------

    def generate(self, inputs: Tensor | None = None, *args: Any, num_latents: int | None = None, **kwargs: Any) -> Any:
        """``GenerationMixin.generate`` with a number of latents to begin with.

        Every token that is written is one latent more. When there are as many as there may be, the older half of them
        becomes part of the prefix, and the text is read anew; so every token is predicted as a forward pass without a
        cache predicts it. The prefix is at most as long as in training: beyond that, the oldest tokens are left out.

        Args:
            num_latents: None takes half of those that there may be, or more where the prefix would be too long.

        Raises:
            ValueError: there may not be so many latents, or so few for a text of this length.
        """
        tokens = inputs if inputs is not None else kwargs.get("input_ids")
        if tokens is None:
            raise ValueError("inputs=None is wrong because a text goes on from tokens; give input_ids")
        kwargs["num_latents"] = self._first_latents(tokens.shape[1], num_latents)
        return GenerationMixin.generate(self, inputs, *args, **kwargs)  # type: ignore[arg-type]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        num_latents: int | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """The last token where there is a cache, else the text as far as the model reads back."""
        past, _ = _lengths(past_key_values, self.config.num_hidden_layers)
        latents = num_latents or self._fewest
        window = past + 1 if past else min(input_ids.shape[1], self.config.max_prefix + latents)
        return {
            "input_ids": input_ids[:, -1:] if past else input_ids[:, -window:],
            "attention_mask": None if attention_mask is None else attention_mask[:, -window:],
            "past_key_values": past_key_values,
            "num_latents": latents,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ):
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        model_kwargs["num_latents"] = (model_kwargs.get("num_latents") or self._fewest) + 1
        if model_kwargs["num_latents"] > self.config.max_latents:
            model_kwargs["num_latents"] = self._fewest
            if model_kwargs.get("past_key_values") is not None:
                model_kwargs["past_key_values"] = DynamicCache(config=self.config)
        return model_kwargs

    @property
    def _fewest(self) -> int:
        """Latents to begin with."""
        return max(self.config.max_latents // 2, 1)

    def _first_latents(self, length: int, asked: int | None) -> int:
        config, least = self.config, length - self.config.max_prefix
        if asked is None:
            return min(max(self._fewest, least), config.max_latents)
        if not 0 < asked <= config.max_latents:
            most = config.max_latents
            raise ValueError(f"num_latents={asked} must be from 1 to max_latents, which is {most}; use {most}")
        if asked < least <= config.max_latents:
            raise ValueError(
                f"num_latents={asked} leaves a prefix of {length - asked} tokens, and the model was trained with at "
                f"most {config.max_prefix}; use from {least} to {config.max_latents}, or a shorter text"
            )
        return asked


def _lengths(cache: Cache | None, layers: int) -> tuple[int, int]:
    """Tokens in a cache, and how many of them are latents."""
    if cache is None:
        return 0, 0
    return cache.get_seq_length(0), cache.get_seq_length(layers - 1)


def _positions(real: Tensor | None, total: int, device: torch.device) -> Tensor:
    """Positions [rows or 1, tokens] from each row's first token on."""
    if real is None:
        return torch.arange(total, device=device)[None]
    return (real.long().cumsum(1) - 1).clamp(min=0)
