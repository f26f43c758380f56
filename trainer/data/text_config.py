"""The keys of a recipe's ``data`` part that concern texts: tokenizer, block size, packing and others.

This file imports nothing heavy, since every command reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from .tokenizer import TokenizerConfig

MOST_TOKENS = 2**31 - 1
"""Tokens of a block and blocks of a window are counted in 32 bits, and fit into no memory long before."""
USUAL_COLLATOR = "trireme.trainer.data.collator.CausalLMCollator"
"""Collator of next-token prediction."""
LENGTH_KEY = "data.block_size"
"""Key of the greatest length of a sample."""
GIVEN_OF_TEXTS = {
    "block_size": "``data.block_size``: tokens of the longest sample",
    "pad_token_id": "token id of padding positions",
    "tokenizer": "the tokenizer in the processor",
}
"""Values for collators of texts: name of an argument -> what it is (``text_values.text_values``)."""


@dataclass(kw_only=True)
class TextConfig:
    """How texts become tokens, and tokens samples."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Pretrained tokenizer, or options to train one."""
    block_size: int = 512
    """Tokens per sample: exactly this number with packing, at most this number without."""
    packing: bool | Literal["blocks", "separate_blocks", "bins", "lanes"] = True
    """How documents share rows. True or ``blocks``: they are concatenated and cut into blocks, and see those before
    them in a block. ``separate_blocks``: the same blocks, in which no document sees another. ``bins``: rows of whole
    documents that do not see each other, for fine-tuning. ``lanes``: blocks in the order of the text, which is cut into
    as many lanes as a step has samples, for models that carry a memory from each sample of a lane to the next. False:
    each document is a sample, truncated to a block."""
    overflow: Literal["cut", "split", "drop"] = "cut"
    """Documents longer than ``block_size`` with ``packing=bins``: cut behind it, split into parts that do not see each
    other, or dropped. A run says how many there are. For conversations there is ``data.chat.too_long``."""
    append_eos: bool = True
    """End every document with the tokenizer's end-of-sequence token."""
    prepend_bos: bool = False
    """Begin every document with the tokenizer's beginning-of-sequence token, as Gemma and RecurrentGemma need it."""

    @property
    def borders(self) -> tuple[bool, bool]:
        """Whether documents get a token at their end, and one at their beginning."""
        return self.append_eos, self.prepend_bos

    @property
    def length(self) -> int:
        """Greatest length of a sample of text, in tokens."""
        return self.block_size

    @property
    def separates(self) -> bool:
        """Whether rows hold several documents that do not see each other."""
        return self.packing in ("separate_blocks", "bins")

    def _text_flaws(self) -> Iterator[str]:
        if self.block_size < 2:
            yield f"block_size={self.block_size} is below 2; set it to at least 2"
        if self.block_size > MOST_TOKENS:
            yield f"block_size={self.block_size} is above {MOST_TOKENS}; use a smaller number"
