"""Values that the engine gives to a collator whose constructor takes them."""

from __future__ import annotations

from .text_config import GIVEN_OF_TEXTS

GIVEN = {
    **GIVEN_OF_TEXTS,
    "micro_batch_size": "``trainer.micro_batch_size``: samples of one forward pass",
    "seed": "the recipe's seed, for ``base_collator.draws``",
    "processor": "what makes inputs of raw data",
    "model": "the model's transformers configuration",
    "inputs": "names of the inputs that the model takes; None if they are not known",
    "facts": "vocabulary and labels of the data",
}
"""Name of a value -> what it is."""
