"""Contrastive task for audio clips and their captions (CLAP, https://arxiv.org/abs/2211.06687)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .contrastive import Contrastive
from .task import Sums

if TYPE_CHECKING:
    from torch import Tensor


class AudioContrastive(Contrastive):
    """Cross-entropy of finding each clip's caption, and each caption's clip, among those of the global batch. Each
    direction has a temperature of its own. Metrics are those of the task for images."""

    samples = "trireme.trainer.data.speech_text_rows.CaptionedAudio"
    collator = "trireme.trainer.data.audio_text_collator.AudioTextCollator"

    def features(self, outputs: Any) -> dict[str, Tensor]:
        from .contrastive_loss import scale_sums

        audio, text = outputs.audio_embeds, outputs.text_embeds
        sums = scale_sums(outputs.logits_per_audio, audio, text), scale_sums(outputs.logits_per_text, text, audio)
        return {"audio": audio, "text": text, "sums": sums[0], "text_sums": sums[1]}

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from .contrastive_loss import pair_losses, scale_of

        arguments = outputs["audio"], outputs["text"], scale_of(outputs["sums"]), targets["paired"]
        return pair_losses(*arguments, other_scale=scale_of(outputs["text_sums"]))[0]

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        from .contrastive_loss import pair_sums

        return pair_sums(outputs.logits_per_audio, targets["paired"], outputs.logits_per_text)
