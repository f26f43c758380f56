"""Speech recognition task with the CTC loss (connectionist temporal classification, Graves et al., 2006)."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.facts import Facts


class CTC(Task):
    """Loss in nats per character; metrics: loss, and error rates of characters (cer) and words (wer).

    The text is the likeliest label of each frame, without repetitions and blanks. An error rate is the number of edits
    that correct all texts, divided by their length.
    """

    head = "ctc"
    samples = "trireme.trainer.data.speech_rows.TranscribedSpeech"
    collator = "trireme.trainer.data.speech_collator.SpeechCollator"
    metric_names = ("loss", "cer", "wer")
    texts = False
    loss_unit = "nats per character"
    blank = 0
    delimiter: int | None = None

    def configure(self, processor: Any, facts: Facts) -> None:
        assert facts.vocabulary is not None
        self.blank = facts.vocabulary.pad if facts.vocabulary.pad is not None else 0
        self.delimiter = getattr(processor.tokenizer, "word_delimiter_token_id", None)

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        import torch.nn.functional as F

        from ...models.loss import IGNORE

        labels, lengths = targets["labels"], (targets["labels"] != IGNORE).sum(1)
        there = lengths > 0  # other rows only fill a place
        if not there.any():
            return outputs.logits.float().sum() * 0.0
        chances = outputs.logits[there].float().log_softmax(-1).transpose(0, 1)  # [frames, samples, labels]
        labels = labels[there].masked_fill(labels[there] == IGNORE, self.blank)
        frames = targets["frames"][there]
        return F.ctc_loss(chances, labels, frames, lengths[there], blank=self.blank, reduction="sum")

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        import torch

        from ...models.loss import IGNORE
        from .edit_distance import edit_distance

        counts = torch.zeros(4, dtype=torch.int64)
        likeliest = outputs.logits.argmax(-1).tolist()
        for row, labels, frames in zip(likeliest, targets["labels"].tolist(), targets["frames"].tolist(), strict=True):
            wanted = [label for label in labels if label != IGNORE]
            if not wanted:
                continue
            found = [label for label, _ in groupby(row[:frames]) if label != self.blank]
            words = [self._words(text) for text in (found, wanted)]
            errors = edit_distance(found, wanted), len(wanted), edit_distance(*words), len(words[1])
            counts += torch.tensor(errors)
        device = outputs.logits.device
        return {"loss": self.loss(outputs, targets), "counts": counts.to(device)}

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        characters, length, words, count = sums["counts"].tolist()
        return {
            "loss": sums["loss"] / max(length, 1.0),
            "cer": characters / max(length, 1.0),
            "wer": words / max(count, 1.0),
        }

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """Labels that are found and wanted in each sample."""
        from ...models.loss import IGNORE

        rows = zip(outputs.logits.argmax(-1).tolist(), targets["frames"].tolist(), strict=True)
        found = [[label for label, _ in groupby(row[:frames]) if label != self.blank] for row, frames in rows]
        wanted = [[label for label in row if label != IGNORE] for row in targets["labels"].tolist()]
        return {"tokens": found, "wanted": wanted}

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        def text(labels: list[int]) -> str:
            signs = (" " if label == self.delimiter else tokenizer.convert_ids_to_tokens(label) for label in labels)
            return "".join(signs)

        return {"index": record["index"], "prediction": text(record["tokens"]), "wanted": text(record["wanted"])}

    def _words(self, text: list[int]) -> list[tuple[int, ...]]:
        pieces = groupby(text, lambda label: label == self.delimiter)
        return [tuple(piece) for is_space, piece in pieces if not is_space]
