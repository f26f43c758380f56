"""Tasks that recipes of the tests name by ``_target_``."""

from __future__ import annotations

import torch.nn.functional as F
from trireme.models.loss import IGNORE, causal_lm_loss, next_token_labels
from trireme.trainer.tasks.causal_lm import CausalLM


class MeanLoss(CausalLM):
    """A common mistake: the mean over the micro-batch."""

    def loss(self, outputs, batch):
        targets = next_token_labels(batch["labels"])
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


class MeanOverSamples(CausalLM):
    """Another mistake: summed over tokens, averaged over samples."""

    def loss(self, outputs, batch):
        return causal_lm_loss(outputs.logits, batch["labels"]) / len(batch["labels"])


class SmoothedSum(CausalLM):
    """A correct task: a sum, though not the one that evaluations use."""

    def loss(self, outputs, batch):
        targets = next_token_labels(batch["labels"]).flatten()
        logits = outputs.logits.float().flatten(0, 1)
        return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum", label_smoothing=0.1)
