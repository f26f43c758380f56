"""Custom training tasks for tests, some correct and some with common mistakes in the loss; recipes name them by
``_target_``.
"""

from __future__ import annotations

import torch.nn.functional as F
from trireme.models.loss import IGNORE, token_loss
from trireme.trainer.tasks.causal_lm import CausalLM


class MeanLoss(CausalLM):
    """A common mistake: the loss is a mean over the micro-batch, not a sum."""

    def loss(self, outputs, targets):
        labels = targets["labels"].flatten()
        return F.cross_entropy(outputs.logits.float().flatten(0, 1), labels, ignore_index=IGNORE)


class MeanOverSamples(CausalLM):
    """Another mistake: the loss is summed over tokens, and averaged over samples."""

    def loss(self, outputs, targets):
        return token_loss(outputs.logits, targets["labels"]) / len(targets["labels"])


class SmoothedSum(CausalLM):
    """A correct task: the loss is a sum, with label smoothing, which evaluations do not use."""

    def loss(self, outputs, targets):
        labels = targets["labels"].flatten()
        logits = outputs.logits.float().flatten(0, 1)
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=0.1)


class TwoPasses(CausalLM):
    """Calls the model twice in each step: in training with the same texts, in evaluations also with reversed ones."""

    def step(self, model, inputs, targets):
        first, second = (model(**inputs) for _ in range(2))
        agree = (first.logits - second.logits).float().abs().mean(-1).sum()
        return (self.loss(first, targets) + self.loss(second, targets)) / 2 + agree

    def evaluation_step(self, model, inputs, targets):
        outputs, other = model(**inputs), model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)})
        outputs.logits = outputs.logits + 0.5 * other.logits
        return outputs


class OneCall(CausalLM):
    """Overrides ``step``, and calls the model once in it, as the engine does for other tasks."""

    def step(self, model, inputs, targets):
        return self.loss(model(**inputs), targets)

    def evaluation_step(self, model, inputs, targets):
        return model(**inputs)


class MeanStep(CausalLM):
    """A common mistake in a task that overrides ``step``: the loss is a mean, not a sum."""

    def step(self, model, inputs, targets):
        return MeanLoss().loss(model(**inputs), targets)
