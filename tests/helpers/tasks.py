"""Tasks that recipes of the tests name by ``_target_``."""

from __future__ import annotations

import torch.nn.functional as F
from trireme.models.loss import IGNORE, token_loss
from trireme.trainer.tasks.causal_lm import CausalLM


class MeanLoss(CausalLM):
    """A common mistake: the mean over the micro-batch."""

    def loss(self, outputs, targets):
        labels = targets["labels"].flatten()
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), labels, ignore_index=IGNORE)


class MeanOverSamples(CausalLM):
    """Another mistake: summed over tokens, averaged over samples."""

    def loss(self, outputs, targets):
        return token_loss(outputs.logits, targets["labels"]) / len(targets["labels"])


class SmoothedSum(CausalLM):
    """A correct task: a sum, though not the one that evaluations use."""

    def loss(self, outputs, targets):
        labels = targets["labels"].flatten()
        logits = outputs.logits.float().flatten(0, 1)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=0.1)
