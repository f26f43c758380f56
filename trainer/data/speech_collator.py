"""Collator for audio clips of different lengths, which masks spans of the audio in training.

SpecAugment (https://arxiv.org/abs/1904.08779) masks spans of time in the spectrogram. Here the spans are silenced in
the waveform, which works with every model. The masks are a function of (seed, position of the sample in the run). So
every epoch masks other spans, and the masks are the same for any number of workers and ranks and after a resume. In an
evaluation nothing is masked.
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
from .processors import FIXED
from .waveform_frames import output_frames

FRAME = 0.01
"""Seconds between frames of a spectrum, where the feature extractor does not say."""


@dataclass
class SpeechCollator(Collator):
    """Pads audio clips, and counts the frames that the model makes of them (the target ``frames``)."""

    processor: Any
    """Given by the engine."""
    model: Any
    """Given by the engine."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    seed: int
    """Given by the engine from ``seed``."""
    masked: float = 0.05
    """Share of an audio clip that is silenced, in spans that may overlap; 0 silences nothing."""
    span_seconds: float = 0.1
    """Length of a span."""
    longest_seconds: float | None = None
    """Pad every clip to this length. Models that take no mask of the padding need it, since they see the padding."""

    def __post_init__(self) -> None:
        if not 0 <= self.masked < 1:
            raise ValueError(f"masked={self.masked} is not a share of an audio clip; set it to 0.05, or to 0 for none")
        if not self.span_seconds > 0:
            raise ValueError(f"span_seconds={self.span_seconds} is not a length; set it to a time such as 0.1")
        if self.longest_seconds is not None and not self.longest_seconds > 0:
            raise ValueError(f"longest_seconds={self.longest_seconds} is not a length; set it to a time such as 20")
        self.extractor = getattr(self.processor, "feature_extractor", self.processor)
        self.name = self.extractor.model_input_names[0]
        self.frames = output_frames(self.model)
        self.rate = self.extractor.sampling_rate  # of the waveform, which is what spans and lengths are measured in
        self.takes_mask = bool(getattr(self.extractor, "return_attention_mask", True))
        self.fixed = any(hasattr(self.extractor, name) for name in FIXED)
        if not self.takes_mask and not self.fixed and self.longest_seconds is None:
            why = f"is needed, since a {self.model.model_type} with these settings takes no mask of the padding: what "
            why += "it makes of an audio clip would depend on the others in its micro-batch"
            fix = "set it to the length of the longest audio clip, in seconds"
            raise UserError(Problem("collator.longest_seconds", why, fix))

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        places = positions(samples).tolist()
        pairs = zip(samples, places, strict=True)
        return super().__call__([{**one, self.name: self.mask(one[self.name], place)} for one, place in pairs])

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        inputs, lengths = self.audio_inputs(samples)
        frames = self.frames(torch.tensor(lengths)).to(torch.int64)
        return MicroBatch(inputs, self._targets(samples, frames), positions(samples), int(frames.sum()))

    def audio_inputs(self, samples: Sequence[Sample]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Inputs of the model, and the length of each audio clip."""
        lengths = [sample[self.name].shape[time_axis(sample[self.name], self.extractor)] for sample in samples]
        if self.fixed:
            return {self.name: torch.from_numpy(np.stack([sample[self.name] for sample in samples]))}, lengths
        longest = max(lengths)
        if self.longest_seconds is not None:
            room = round(self.longest_seconds * self.rate)
            if longest > room:
                why = f"is shorter than an audio clip of {longest / self.rate:.2f} seconds"
                raise UserError(Problem("collator.longest_seconds", why, "raise it", self.longest_seconds))
            longest = room
        clips = [sample[self.name] for sample in samples]
        inputs = {self.name: padded(clips, longest, getattr(self.extractor, "padding_value", 0.0))}
        if self.takes_mask:
            inputs["attention_mask"] = padded([np.ones(length, np.int64) for length in lengths], longest, 0)
        return inputs, lengths

    def _targets(self, samples: Sequence[Sample], frames: torch.Tensor) -> dict[str, Any]:
        if "labels" not in samples[0]:
            return {"labels": torch.as_tensor(np.stack([np.asarray(sample["label"]) for sample in samples]))}
        texts = [sample["labels"] for sample in samples]
        return {"labels": padded(texts, max(map(len, texts)), IGNORE), "frames": frames}

    def mask(self, clip: np.ndarray, position: int) -> np.ndarray:
        """A copy of an audio clip with silent spans, which depend on its ``position`` in the stream."""
        axis = time_axis(clip, self.extractor)
        length = clip.shape[axis]
        rate = self.rate if clip.ndim == 1 else self.rate / getattr(self.extractor, "hop_length", FRAME * self.rate)
        span = min(max(round(self.span_seconds * rate), 1), length)
        numbers = draws(self.seed, position, "sound")  # part of the seed; another name would draw other spans
        count = int(self.masked * length / span + numbers.random())  # a fraction of a span is drawn
        clip = clip.copy()
        silent = np.moveaxis(clip, axis, 0)  # a view
        for start in numbers.integers(length - span + 1, size=count):
            silent[start : start + span] = 0.0
        return clip


def time_axis(clip: np.ndarray, extractor: Any) -> int:
    """The dimension of an audio clip's features that is time: the last one of [frequencies, time], the middle one of
    [channels, time, frequencies], else the first."""
    if clip.ndim == 3:
        return 1
    size = getattr(extractor, "feature_size", None)
    return 1 if clip.ndim == 2 and clip.shape[0] == size and clip.shape[1] != size else 0
