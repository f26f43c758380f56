"""Collate sounds of different lengths, and mask spans of those of training steps.

SpecAugment (https://arxiv.org/abs/1904.08779) masks spans of time. Here spans of the sound itself are silenced, which
every model allows. What is masked is a function of (seed, position of the sample), so every pass masks other spans, and
no worker, rank or resume changes them. In an evaluation nothing is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import Problem, UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, draws, positions
from .padded_collator import padded
from .waveform_frames import output_frames


@dataclass
class SpeechCollator(Collator):
    """Pads sounds, and counts the frames that the model makes of them (the target ``frames``)."""

    processor: Any
    """Given by the engine."""
    model: Any
    """Given by the engine."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    seed: int
    """Given by the engine from ``seed``."""
    masked: float = 0.05
    """Share of a sound that is silenced, in spans that may overlap; 0 silences nothing."""
    span_seconds: float = 0.1
    """Length of a span."""
    longest_seconds: float | None = None
    """Pad every sound to this length. Models that take no mask of the padding need it, since they see the padding."""

    def __post_init__(self) -> None:
        if not 0 <= self.masked < 1:
            raise ValueError(f"masked={self.masked} is not a share of a sound; set it to 0.05, or to 0 for none")
        if not self.span_seconds > 0:
            raise ValueError(f"span_seconds={self.span_seconds} is not a length; set it to a time such as 0.1")
        if self.longest_seconds is not None and not self.longest_seconds > 0:
            raise ValueError(f"longest_seconds={self.longest_seconds} is not a length; set it to a time such as 20")
        self.extractor = getattr(self.processor, "feature_extractor", self.processor)
        self.name = self.extractor.model_input_names[0]
        self.frames = output_frames(self.model)
        self.rate = self.extractor.sampling_rate  # of the waveform, which is what spans and lengths are measured in
        self.takes_mask = bool(getattr(self.extractor, "return_attention_mask", True))
        if not self.takes_mask and self.longest_seconds is None:
            why = f"is needed, since a {self.model.model_type} with these settings takes no mask of the padding: what "
            why += "it makes of a sound would depend on the others in its micro-batch"
            fix = "set it to the length of the longest sound, in seconds"
            raise UserError(Problem("collator.longest_seconds", why, fix))

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        places = positions(samples).tolist()
        pairs = zip(samples, places, strict=True)
        return super().__call__([{**one, self.name: self.mask(one[self.name], place)} for one, place in pairs])

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        lengths = [len(sample[self.name]) for sample in samples]
        longest = max(lengths)
        if self.longest_seconds is not None:
            room = round(self.longest_seconds * self.rate)
            if longest > room:
                why = f"is shorter than a sound of {longest / self.rate:.2f} seconds"
                raise UserError(Problem("collator.longest_seconds", why, "raise it", self.longest_seconds))
            longest = room
        sounds = [sample[self.name] for sample in samples]
        inputs = {self.name: padded(sounds, longest, getattr(self.extractor, "padding_value", 0.0))}
        if self.takes_mask:
            inputs["attention_mask"] = padded([np.ones(length, np.int64) for length in lengths], longest, 0)
        frames = self.frames(torch.tensor(lengths)).to(torch.int64)
        targets = self._targets(samples, frames)
        return MicroBatch(inputs, targets, positions(samples), int(frames.sum()))

    def _targets(self, samples: Sequence[Sample], frames: torch.Tensor) -> dict[str, Any]:
        if "labels" not in samples[0]:
            return {"labels": torch.as_tensor(np.stack([np.asarray(sample["label"]) for sample in samples]))}
        texts = [sample["labels"] for sample in samples]
        return {"labels": padded(texts, max(map(len, texts)), IGNORE), "frames": frames}

    def mask(self, sound: np.ndarray, position: int) -> np.ndarray:
        """A copy of a sound [samples] with silent spans; the sound at ``position`` of the stream."""
        span = min(max(round(self.span_seconds * self.rate), 1), len(sound))
        numbers = draws(self.seed, position, "sound")
        count = int(self.masked * len(sound) / span + numbers.random())  # a fraction of a span is drawn
        sound = sound.copy()
        for start in numbers.integers(len(sound) - span + 1, size=count):
            sound[start : start + span] = 0.0
        return sound
