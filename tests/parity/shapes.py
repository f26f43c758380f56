"""Small recipes for models other than plain decoders (BERT, T5, ViT, wav2vec 2.0, ...), to test parallelism plans.

Some of their labels can be masked out. ``matrix.py`` compares parallelism plans with these recipes, and
``tests/dist/test_shapes.py`` resumes and exports them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from helpers.captions import captioned_digits
from helpers.recipes import FEW_FILES, TINY

RECIPES = TINY.parent
PLANS = ("single", "ddp", "zero1", "zero2", "zero3", "fsdp_full_shard", "fsdp_hybrid_shard")
"""Plans without pipeline and tensor parallelism, under which all of these models can be trained."""


@dataclass(frozen=True)
class Shape:
    """A recipe of ``tests/recipes`` with its overrides, and a collator that masks labels."""

    recipe: str
    uneven: str
    """Collator of ``helpers.uneven`` that leaves out the labels of some samples."""
    arguments: tuple[str, ...] = ()
    """Arguments of that collator: what it draws at random."""
    overrides: tuple[str, ...] = ()
    program: str = ""
    """Program that makes the recipe's data; empty if none is needed."""

    @property
    def file(self) -> Path:
        return RECIPES / f"{self.recipe}.yaml"

    @property
    def missing(self) -> bool:
        """Whether this machine lacks the program."""
        return bool(self.program) and shutil.which(self.program) is None

    @property
    def uneven_labels(self) -> list[str]:
        """Overrides that leave out labels."""
        return [f"+collator._target_=helpers.uneven.{self.uneven}", *(f"+collator.{one}" for one in self.arguments)]

    def data(self, folder: Path) -> list[str]:
        """Overrides for data that are made in ``folder``."""
        return [f"data.source.path={captioned_digits(folder / 'captions')}"] if self.recipe == "captions" else []


SHAPES = {
    "masked_lm": Shape("masked", "UnevenMaskedLM", overrides=(f"data.source.roots=[{','.join(FEW_FILES)}]",)),
    "mra": Shape(
        "masked",
        "UnevenMaskedLM",
        overrides=(f"data.source.roots=[{','.join(FEW_FILES)}]", "model=mra_tiny", "data.block_size=100"),
    ),
    "transformer_xl": Shape("lanes", "UnevenLanes", overrides=(f"data.source.roots=[{','.join(FEW_FILES)}]",)),
    "sequence_classification": Shape("texts", "UnevenTexts"),
    "transformer_xl_texts": Shape("texts", "UnevenTexts", overrides=("model=transformer_xl_tiny",)),
    # T5 1.1's activation, since ReLU's gradient jumps: rounding moved one input across zero, and the norm by 1.5e-4.
    "seq2seq_lm": Shape("translations", "UnevenSeq2Seq", overrides=("++model.config.feed_forward_proj=gated-gelu",)),
    "image_classification": Shape("images", "UnevenImages", ("crop_padding=1", "flip=0.5")),
    "ctc": Shape("speech", "UnevenSpeech", ("masked=0.1",), program="espeak-ng"),
    "contrastive": Shape("captions", "UnevenPairs", ("crop_padding=2", "flip=0.5")),
}
"""Recipes by the name of the task, or of the model if two models have the same task."""
