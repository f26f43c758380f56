"""Score generated texts against reference texts, by exact match or BLEU.

Each score is computed from sums that are added over micro-batches and ranks. This file does not import torch or the
libraries of the scores, since every command reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .task import Sums

ORDER = 4
"""Longest sequence of words that BLEU counts."""


@dataclass(frozen=True)
class Score:
    """One score of texts."""

    sums: Callable[[Sequence[str], Sequence[str]], list[float]]
    """(written, wanted) -> numbers whose sums give the score; the same number of them for no text."""
    value: Callable[[list[float]], float]
    """The score from these sums."""
    package: str = ""
    """Package that it needs."""


def text_sums(scores: Sequence[str], written: Sequence[str], wanted: Sequence[str]) -> Sums:
    """Sums of ``scores`` over texts."""
    import torch

    found = {name: SCORES[name].sums(written, wanted) for name in scores}
    return {f"score/{name}": torch.tensor(sums, dtype=torch.float64) for name, sums in found.items()}


def text_metrics(sums: dict[str, Any]) -> dict[str, float]:
    """Scores from the sums among ``sums``, by name."""
    found = {name.removeprefix("score/"): value for name, value in sums.items() if name.startswith("score/")}
    return {name: SCORES[name].value(value.tolist()) for name, value in found.items()}


def _equal(written: Sequence[str], wanted: Sequence[str]) -> list[float]:
    alike = sum(one.strip() == other.strip() for one, other in zip(written, wanted, strict=True))
    return [float(alike), float(len(written))]


def _share(sums: list[float]) -> float:
    return sums[0] / max(sums[1], 1.0)


def _bleu_sums(written: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """Matches and totals of sequences of 1 to 4 words, and words written and wanted, by sacrebleu's own counting."""
    from sacrebleu.metrics.bleu import BLEU

    bleu, sums = BLEU(max_ngram_order=ORDER, effective_order=True), [0.0] * (2 * ORDER + 2)
    for one, other in zip(written, wanted, strict=True):
        score = bleu.sentence_score(one, [other])
        sums = [a + b for a, b in zip(sums, (*score.counts, *score.totals, score.sys_len, score.ref_len), strict=True)]
    return sums


def _bleu(sums: list[float]) -> float:
    """Corpus BLEU between 0 and 100, as sacrebleu computes it (https://arxiv.org/abs/1804.08771)."""
    from sacrebleu.metrics.bleu import BLEU

    whole = [round(value) for value in sums]
    counts, totals = whole[:ORDER], whole[ORDER : 2 * ORDER]
    return float(BLEU.compute_bleu(counts, totals, whole[-2], whole[-1], smooth_method="exp").score)


SCORES: dict[str, Score] = {
    "exact_match": Score(_equal, _share),
    "bleu": Score(_bleu_sums, _bleu, package="sacrebleu"),
}
"""Name in ``generation.scores`` -> the score."""
