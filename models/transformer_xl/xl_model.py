"""Transformer-XL without a head: embedding, layers, and the memory that each segment of a text passes to the next.

The memory holds the earlier inputs of each layer, without gradient: [batch, layers, mem_len, width]. Only its last
``mem_lengths`` positions are filled. A text that is read in segments, each with the memory of the segments before, has
the same outputs as the text read at once, as far back as the memory reaches. If the memory is passed on, padding must
be on the left. Padding is never attended to, and never enters the memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .xl_config import TransfoXLConfig
from .xl_layers import TransfoXLLayer, encoded_distances
from .xl_words import AdaptiveEmbedding, Projections


@dataclass
class TransfoXLModelOutput(ModelOutput):
    """Hidden states, and the memory after these tokens if there was one before, or if it was asked for."""

    last_hidden_state: Tensor | None = None
    """[rows, tokens, width]."""
    mems: Tensor | None = None
    """[rows, layers, mem_len, width]."""
    mem_lengths: Tensor | None = None
    """[rows], int64: how many of the last positions of the memory hold something."""


class TransfoXLPreTrainedModel(PreTrainedModel):
    """Base class of all Transformer-XL models, with their common settings for transformers."""

    config_class = TransfoXLConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransfoXLLayer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"pos_emb\.inv_freq"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        config = self.config
        if isinstance(module, nn.LayerNorm):
            init.normal_(module.weight, 1.0, config.init_std)
            init.zeros_(module.bias)
        elif isinstance(module, Projections):
            for matrix in module.parameters(recurse=False):
                init.normal_(matrix, 0.0, config.proj_init_std)
        else:
            for name, parameter in module.named_parameters(recurse=False):
                if name in ("bias", "cluster_bias"):
                    init.zeros_(parameter)
                elif config.init == "uniform":
                    init.uniform_(parameter, -config.init_range, config.init_range)
                else:
                    init.normal_(parameter, 0.0, config.init_std)


class TransfoXLModel(TransfoXLPreTrainedModel):
    """Embedding, layers and memory, without a head."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.word_emb = AdaptiveEmbedding(config)
        self.drop = nn.Dropout(config.dropout)
        if not config.untie_r:
            self.r_w_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
            self.r_r_bias = nn.Parameter(torch.empty(config.n_head, config.d_head))
        self.layers = nn.ModuleList(TransfoXLLayer(config) for _ in range(config.n_layer))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.word_emb = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mems: Tensor | None = None,
        mem_lengths: Tensor | None = None,
        remember: bool = False,
        **others: Any,
    ) -> TransfoXLModelOutput:
        """Hidden states of the tokens.

        Args:
            input_ids: [rows, tokens].
            attention_mask: [rows, tokens], 0 at padding.
            mems: [rows, layers, positions, width], the memory before these tokens; None for nothing.
            mem_lengths: [rows], how many of its last positions hold something; None for all.
            remember: give a memory, also if there was none before.
        """
        hidden = self.word_emb(input_ids) if inputs_embeds is None else inputs_embeds
        hidden = self.drop(hidden)
        rows, tokens, width = hidden.shape
        past = 0 if mems is None else mems.shape[2]
        mems = mems.to(hidden.dtype) if mems is not None else None
        distances = encoded_distances(past + tokens, self.config.clamp_len, width, hidden.device).to(hidden.dtype)
        seen = self._seen(tokens, past, attention_mask, mem_lengths, hidden.device)
        biases = None if self.config.untie_r else (self.r_w_bias, self.r_r_bias)
        states = []
        for number, layer in enumerate(self.layers):
            states.append(hidden)
            hidden = layer(hidden, None if mems is None else mems[:, number], distances, seen, biases)
        hidden = self.drop(hidden)
        if not remember and mems is None:
            return TransfoXLModelOutput(last_hidden_state=hidden)
        if mem_lengths is None:
            mem_lengths = torch.full((rows,), past, device=hidden.device)
        memory = self._remembered(states, mems)
        real = tokens if attention_mask is None else attention_mask.long().sum(1)
        return TransfoXLModelOutput(hidden, memory, (mem_lengths + real).clamp(max=self.config.mem_len))

    def _seen(
        self, tokens: int, past: int, real: Tensor | None, mem_lengths: Tensor | None, device: torch.device
    ) -> Tensor:
        """Whether a token sees a key: [rows or 1, 1, tokens, keys]; the first ``past`` keys are those of a memory."""
        places = torch.arange(past + tokens, device=device)
        distance = places[past:, None] - places
        seen = distance >= 0
        if self.config.same_length and self.config.mem_len:
            seen = seen & (distance < self.config.mem_len)
        seen = seen[None, None]
        if real is not None or (mem_lengths is not None and past):
            seen = seen & self._holding(tokens, past, real, mem_lengths, places)[:, None, None]
        return seen | (distance == 0)  # a token of padding sees itself, since a softmax over nothing has no value

    def _holding(
        self, tokens: int, past: int, real: Tensor | None, mem_lengths: Tensor | None, places: Tensor
    ) -> Tensor:
        """Whether a key is a token, not padding: [rows or 1, keys]."""
        kept = places[None, :past] >= (0 if mem_lengths is None else past - mem_lengths[:, None])
        shown = torch.ones_like(places[None, :tokens], dtype=torch.bool) if real is None else real != 0
        rows = max(len(kept), len(shown))
        return torch.cat([kept.expand(rows, -1), shown.expand(rows, -1)], dim=1)

    def _remembered(self, states: list[Tensor], mems: Tensor | None) -> Tensor:
        """The last ``mem_len`` positions of what each layer saw, without gradient; zeros where there were fewer."""
        length = self.config.mem_len
        with torch.no_grad():
            found = torch.stack([state[:, max(state.shape[1] - length, 0) :] for state in states], dim=1)
            if found.shape[2] < length:
                missing = length - found.shape[2]
                before = found.new_zeros(*found.shape[:2], missing, found.shape[3]) if mems is None else mems
                if before.shape[2] < missing:
                    padding = found.new_zeros(*found.shape[:2], missing - before.shape[2], found.shape[3])
                    before = torch.cat([padding, before], dim=2)
                found = torch.cat([before[:, :, before.shape[2] - missing :], found], dim=2)
        return found.detach()
