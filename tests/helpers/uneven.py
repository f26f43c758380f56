"""Collators that drop the labels of about half of the samples, for several kinds of data such as texts and images.

Tests use them to check that losses are averaged over all labels of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from trireme.parallel.micro_batch import MicroBatch, map_tensors
from trireme.trainer.data.base_collator import Collator, Sample, nothing
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.data.image_collator import ImageCollator
from trireme.trainer.data.image_text_collator import ImageTextCollator
from trireme.trainer.data.masked_lm_collator import MaskedLMCollator
from trireme.trainer.data.padded_collator import PaddedCollator
from trireme.trainer.data.seq2seq_collator import Seq2SeqCollator
from trireme.trainer.data.speech_collator import SpeechCollator


class Uneven(Collator):
    """About half of the samples have no targets; which ones is a function of their positions."""

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        return [_thinned(micro) for micro in super().__call__(samples)]


class UnevenMaskedLM(Uneven, MaskedLMCollator): ...


class UnevenLanes(Uneven, CausalLMCollator): ...


class UnevenTexts(Uneven, PaddedCollator): ...


class UnevenSeq2Seq(Uneven, Seq2SeqCollator): ...


class UnevenImages(Uneven, ImageCollator): ...


class UnevenSpeech(Uneven, SpeechCollator): ...


class UnevenPairs(Uneven, ImageTextCollator): ...


def _thinned(micro: MicroBatch) -> MicroBatch:
    empty = micro.samples * 7919 % 11 < 5

    def thinned(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[empty] = nothing(tensor.dtype)
        return tensor

    return replace(micro, targets=map_tensors(micro.targets, thinned))
