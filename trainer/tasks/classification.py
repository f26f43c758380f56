"""Loss, metrics and predictions for classification and regression of whole samples: texts, images or audio clips.

Shape and type of the labels decide between three kinds: integers [samples] are classes, floating-point numbers
[samples] are regression targets, and floating-point numbers [samples, classes] mark several classes per sample. A label
that is ``IGNORE`` or NaN counts as missing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.loss import IGNORE


def labelled(labels: Tensor) -> Tensor:
    """Whether each sample has a label: [samples]."""
    there = ~labels.isnan() if labels.is_floating_point() else labels != IGNORE
    return there if there.ndim == 1 else there.all(1)


def label_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over the labelled samples, in fp32: cross-entropy, squared error, or the mean over classes of the binary one.

    Args:
        logits: [samples, classes]; [samples, 1] for numbers to be predicted.
        smoothing: share of a class label that is spread evenly over the classes.
    """
    logits, there = logits.float(), labelled(labels)
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum", label_smoothing=smoothing)
    # A sample without a label must not enter the graph, since 0 x NaN is NaN in the backward pass.
    logits, labels = logits[there], labels[there]
    if labels.ndim == 1:
        return F.mse_loss(logits.squeeze(1), labels.float(), reduction="sum")
    return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(1).sum()


def label_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums for ``label_metrics``: a table [classes, classes] of (label, prediction), or sums of numbers."""
    there = labelled(labels)
    logits, labels = logits.float()[there], labels[there]
    sums = {"loss": label_loss(logits, labels), "labels": there.sum()}
    if not labels.is_floating_point():
        classes = logits.shape[1]
        pairs = labels * classes + logits.argmax(1)
        return {**sums, "table": torch.bincount(pairs, minlength=classes**2).view(classes, classes)}
    if labels.ndim == 1:
        found = logits.squeeze(1)
        parts = (found, labels, found**2, labels**2, found * labels)
        return {**sums, "moments": torch.stack([part.double().sum() for part in parts])}
    chosen, marked = logits > 0, labels > 0.5
    rows = (chosen & marked, chosen & ~marked, ~chosen & marked)
    return {**sums, "counts": torch.stack([row.sum(0) for row in rows]), "exact": (chosen == marked).all(1).sum()}


def label_metrics(sums: dict[str, Any]) -> dict[str, float]:
    """Loss, and what fits the kind: accuracy, macro F1 and Matthews' correlation; Pearson's; micro and macro F1."""
    count = max(sums["labels"], 1.0)
    metrics = {"loss": sums["loss"] / count}
    if "table" in sums:
        table = sums["table"]
        right, chosen, labels = table.diagonal(), table.sum(0), table.sum(1)
        return {
            **metrics,
            "accuracy": float(right.sum()) / count,
            "f1": _mean_f1(right, chosen, labels),
            "matthews": _matthews(table),
        }
    if "moments" in sums:
        return {**metrics, "pearson": _pearson(sums["moments"], count)}
    both, false, missed = sums["counts"]
    micro = 2 * both.sum() / (2 * both.sum() + false.sum() + missed.sum()).clamp(min=1)
    macro = _mean_f1(both, both + false, both + missed)
    return {**metrics, "accuracy": sums["exact"] / count, "f1_micro": float(micro), "f1": macro}


def label_records(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Probabilities of the classes, or the number that is predicted, beside the label."""
    logits = logits.float()
    if not labels.is_floating_point():
        return {"probabilities": logits.softmax(1), "label": labels}
    if labels.ndim == 1:
        return {"value": logits.squeeze(1), "label": labels}
    return {"probabilities": logits.sigmoid(), "label": labels}


def label_prediction(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A record of ``label_records`` with the labels' names."""
    found = {name: value for name, value in record.items() if name not in ("probabilities", "value", "label")}
    label = record["label"]
    if "value" in record:
        return {**found, "prediction": record["value"], "label": label}
    chances = record["probabilities"]
    shares = {name: round(share, 6) for name, share in zip(names, chances, strict=True)}
    if isinstance(label, list):
        chosen = [name for name, share in zip(names, chances, strict=True) if share > 0.5]
        marked = [name for name, mark in zip(names, label, strict=True) if mark > 0.5]
        return {**found, "prediction": chosen, "label": marked, "probabilities": shares}
    likeliest = names[max(range(len(chances)), key=chances.__getitem__)]
    return {**found, "prediction": likeliest, "label": names[label] if label >= 0 else None, "probabilities": shares}


def _mean_f1(right: Tensor, chosen: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of 2 x right / (chosen + labels)."""
    occur = (chosen + labels) > 0
    return float((2 * right[occur] / (chosen + labels)[occur]).mean()) if occur.any() else 0.0


def _matthews(table: Tensor) -> float:
    """Matthews' correlation of several classes (Gorodkin, 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006)."""
    total, right = table.sum(), table.diagonal().sum()
    chosen, labels = table.sum(0), table.sum(1)
    below = ((total**2 - (chosen**2).sum()) * (total**2 - (labels**2).sum())).sqrt()
    return float((right * total - (chosen * labels).sum()) / below) if below > 0 else 0.0


def _pearson(moments: Tensor, count: float) -> float:
    x, y, xx, yy, xy = (float(value) / count for value in moments)
    below = ((xx - x * x) * (yy - y * y)) ** 0.5 if xx > x * x and yy > y * y else 0.0
    return (xy - x * y) / below if below else 0.0
