"""Transformer-XL models with a head: next-token prediction by an adaptive softmax, and classification of texts.

In generation, the memory of earlier segments is the only cache, so texts of any length can be generated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from .xl_config import TransfoXLConfig
from .xl_model import TransfoXLModel, TransfoXLModelOutput, TransfoXLPreTrainedModel
from .xl_words import AdaptiveSoftmax


class Memory:
    """The memory in the form of a cache, which ``generate`` passes from one token to the next."""

    is_compileable = False

    def __init__(self, mems: Tensor, lengths: Tensor, seen: int) -> None:
        """
        Args:
            seen: tokens that were read so far.
        """
        self.mems, self.lengths, self.seen = mems, lengths, seen

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that were read so far."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of the beams that continue, in the order ``beam_idx``."""
        self.mems, self.lengths = self.mems.index_select(0, beam_idx), self.lengths.index_select(0, beam_idx)


@dataclass
class TransfoXLOutput(ModelOutput):
    """Outputs of both heads."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    """Log-probabilities of words [rows, tokens, words]; scores of labels [rows, labels]."""
    past_key_values: Memory | None = None
    mems: Tensor | None = None
    """[rows, layers, mem_len, width]."""
    mem_lengths: Tensor | None = None
    """[rows], int64."""


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Transformer-XL that predicts the word after each token."""

    _tied_weights_keys = {  # noqa: RUF012
        r"crit\.out_layers\.\d+\.weight": r"transformer\.word_emb\.emb_layers\.\d+\.weight",
        r"crit\.out_projs\.\d+": r"transformer\.word_emb\.emb_projs\.\d+",
    }
    _is_stateful = True

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.crit = AdaptiveSoftmax(config)
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Parameter of the softmax -> that of the embedding which it is. Projections are tied by ``tie_projs``."""
        found, embedding = {}, self.transformer.word_emb
        if self.config.tie_word_embeddings:
            for number in range(len(self.crit.out_layers)):
                found[f"crit.out_layers.{number}.weight"] = f"transformer.word_emb.emb_layers.{number}.weight"
        for number, tied in enumerate(self.config.tied_projections):
            source = str(number if self.config.div_val != 1 else 0)
            if tied and hasattr(embedding.emb_projs, source):
                found[f"crit.out_projs.{number}"] = f"transformer.word_emb.emb_projs.{source}"
        return found

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mems: Tensor | None = None,
        mem_lengths: Tensor | None = None,
        past_key_values: Memory | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **others: Any,
    ) -> TransfoXLOutput:
        """Log-probabilities of words; arguments as of ``TransfoXLModel``.

        Args:
            past_key_values: a memory, in place of ``mems`` and ``mem_lengths``.
            labels: [rows, tokens], beside their tokens, -100 where there is none.
            logits_to_keep: only so many of the last positions; 0 gives all.
        """
        if past_key_values is not None:
            mems, mem_lengths = past_key_values.mems, past_key_values.lengths
        found = self.transformer(input_ids, attention_mask, inputs_embeds, mems, mem_lengths, bool(use_cache))
        hidden = found.last_hidden_state
        logits = self.crit(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            wanted = labels[:, -logits.shape[1] :]
            loss = self.loss_function(logits=logits, labels=wanted, vocab_size=self.config.vocab_size, **others)
        memory = None
        if use_cache:
            read = 0 if past_key_values is None else past_key_values.seen
            memory = Memory(found.mems, found.mem_lengths, read + hidden.shape[1])
        return TransfoXLOutput(loss, logits, memory, found.mems, found.mem_lengths)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first pass makes a memory

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Memory | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """The inputs of the next forward pass: tokens that the memory has not read yet."""
        new = input_ids.shape[1]
        if past_key_values is not None:
            new = next_sequence_length or 1
        return {
            "input_ids": input_ids[:, -new:],
            "attention_mask": None if attention_mask is None else attention_mask[:, -new:],
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer-XL that labels a text by the hidden state of its last token."""

    def __init__(self, config: TransfoXLConfig) -> None:
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.score = nn.Linear(config.d_model, int(config.num_labels or 0), bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mems: Tensor | None = None,
        mem_lengths: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> TransfoXLOutput:
        """Scores [rows, labels]; arguments as of ``TransfoXLModel``. Padding may stand on either side.

        Args:
            labels: [rows], a class each, or a number where there is one label.
        """
        found: TransfoXLModelOutput = self.transformer(
            input_ids, attention_mask, inputs_embeds, mems, mem_lengths, False
        )
        hidden = found.last_hidden_state
        assert hidden is not None
        last = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        if attention_mask is not None:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            last = torch.where(attention_mask != 0, places, 0).amax(1)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        loss = None
        if labels is not None:
            numbers = self.config.num_labels == 1
            loss = F.mse_loss(logits.squeeze(1), labels.float()) if numbers else F.cross_entropy(logits, labels)
        return TransfoXLOutput(loss, logits, None, found.mems, found.mem_lengths)
