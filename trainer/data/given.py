"""Values that the engine gives to a collator whose constructor takes them."""

from __future__ import annotations

GIVEN = {
    "block_size": "``data.block_size``: tokens of the longest sample",
    "micro_batch_size": "``trainer.micro_batch_size``: samples of one forward pass",
    "seed": "the recipe's seed, for ``base_collator.draws``",
    "pad_token_id": "token id of padding positions",
    "processor": "what makes inputs of raw data",
    "tokenizer": "the tokenizer in the processor",
    "model": "the model's transformers configuration",
    "facts": "vocabulary and labels of the data",
}
"""Name of a value -> what it is."""
