"""The ``generation`` section of a recipe: how the model generates texts in evaluations and predictions."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import refuse
from .tasks.text_scores import SCORES

NOT_PASSED_ON = ("samples", "scores")
"""Fields that are not transformers' own."""


@dataclass
class GenerationConfig:
    """How evaluations and predictions write texts. The names are those of transformers' ``generate``."""

    max_new_tokens: int = 64
    """Most tokens that are written for a sample."""
    num_beams: int = 1
    """Beams of a beam search; 1 takes the likeliest token at each step, or draws one."""
    do_sample: bool = False
    """Draw tokens at random, as a function of (seed, sample)."""
    temperature: float = 1.0
    """Divides the logits before a draw."""
    top_k: int = 50
    """Draws are from this many likeliest tokens; 0 draws from all."""
    top_p: float = 1.0
    """Draws are from the likeliest tokens that together have this probability."""
    length_penalty: float = 1.0
    """Power of the length by which a beam's score is divided."""
    repetition_penalty: float = 1.0
    """Divides the scores of tokens that stand in the text already; 1 leaves them."""
    no_repeat_ngram_size: int = 0
    """Never repeat so many tokens in a row; 0 allows it."""
    samples: int | None = None
    """Held-out samples for which an evaluation writes texts; null takes all. Losses are taken of all in any case."""
    scores: list[str] = field(default_factory=lambda: ["exact_match"])
    """Scores of the written texts, such as exact_match and bleu."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        for name in ("max_new_tokens", "num_beams"):
            if (value := getattr(self, name)) < 1:
                yield f"{name}={value} is wrong because it is below 1; use 1 or more"
        if self.samples is not None and self.samples < 1:
            yield f"samples={self.samples} is wrong because it counts samples; use 1 or more, or null for all"
        for name in ("temperature", "repetition_penalty"):
            if not (value := getattr(self, name)) > 0:
                yield f"{name}={value} is wrong because scores are divided by it; use a positive number"
        if not 0 < self.top_p <= 1:
            yield f"top_p={self.top_p} is wrong because it is a probability; set it above 0 and at most to 1"
        for name in ("top_k", "no_repeat_ngram_size"):
            if (value := getattr(self, name)) < 0:
                yield f"{name}={value} is wrong because it counts tokens; use 0 or more"
        for name in self.scores:
            if name not in SCORES:
                yield f"scores={name!r} is not a score; use some of {', '.join(SCORES)}"
            elif (package := SCORES[name].package) and importlib.util.find_spec(package) is None:
                yield f"scores={name!r} needs {package}, which is not installed; pip install 'trireme-train[metrics]'"

    def arguments(self) -> dict[str, Any]:
        """Arguments of transformers' ``generate``; those of draws only where there are draws."""
        names = ["max_new_tokens", "num_beams", "do_sample", "repetition_penalty", "no_repeat_ngram_size"]
        names += ["temperature", "top_k", "top_p"] if self.do_sample else []
        names += ["length_penalty"] if self.num_beams > 1 else []
        return {name: getattr(self, name) for name in names}
