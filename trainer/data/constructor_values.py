"""Names and meanings of the values (seed, tokenizer ...) that trireme passes to constructors of users' own classes.

These are collators, data loaders and sample orders. A value is passed if the constructor has a parameter of its name.
"""

from __future__ import annotations

from .text_config import GIVEN_OF_TEXTS

GIVEN = {
    **GIVEN_OF_TEXTS,
    "micro_batch_size": "``trainer.micro_batch_size``: samples of one forward pass",
    "seed": "the recipe's seed, for ``base_collator.draws``",
    "processor": "the tokenizer or processor that makes inputs from raw data",
    "model": "the model's transformers configuration",
    "inputs": "names of the inputs that the model takes; None if they are not known",
    "facts": "vocabulary and labels of the data",
}
"""Values for ``collator``: name of the constructor's parameter -> what it is."""
OF_LOADER = {
    "seed": "the recipe's seed",
    "block_size": GIVEN_OF_TEXTS["block_size"],
    "tokenizer": "the tokenizer that the recipe names, or that of the weights; None if there is none",
    "model": GIVEN["model"],
    "weights": "folder of the model's weights; None if it begins at random",
    "config": "the recipe's part ``data``",
    "cache": "folder of the cache",
}
"""The same for ``data.loader``."""
OF_ORDER = {
    "size": "samples of a pass",
    "seed": "the recipe's seed",
    "global_batch_size": "``trainer.global_batch_size``",
    "rows": "the rows that samples are made of, a ``datasets.Dataset``; None for texts",
}
"""The same for ``data.order``."""
