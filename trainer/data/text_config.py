"""The keys of a recipe's ``data`` part that are about texts.

Nothing heavy is imported, since every command reads this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .tokenizer import TokenizerConfig

MOST_TOKENS = 2**31 - 1
"""Tokens of a block and blocks of a window are counted in 32 bits, and fit into no memory long before."""
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
    packing: bool = True
    """Concatenate documents and cut them into blocks; false makes each document a sample, truncated to a block."""
    append_eos: bool = True
    """End every document with the tokenizer's end-of-sequence token."""

    @property
    def length(self) -> int:
        """Greatest length of a sample of text, in tokens."""
        return self.block_size

    def _text_flaws(self) -> Iterator[str]:
        if self.block_size < 2:
            yield f"block_size={self.block_size} is below 2; set it to at least 2"
        if self.block_size > MOST_TOKENS:
            yield f"block_size={self.block_size} is above {MOST_TOKENS}; use a smaller number"
