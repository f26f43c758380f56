"""The object detection loss of DETR: match each labelled box with one of the model's queries, and compare the two."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def image_losses(
    logits: Tensor, found: Tensor, targets: dict[str, Any], weights: tuple[float, float, float], nothing: float
) -> dict[str, Tensor]:
    """Sums over all images of their losses, and over all boxes of correct classes and of overlaps.

    Args:
        logits: [images, queries, classes + 1]; the last class is "no object".
        found: [images, queries, 4], centre and size as fractions of the image.
        weights: of the classes, of the L1 distance of boxes, of their generalised IoU.
        nothing: weight of the class "no object".
    """
    logits, found = logits.float(), found.float()
    sums = {name: logits.sum() * 0.0 for name in ("loss", "boxes", "right", "overlap")}
    for image in targets["real_images"].nonzero().flatten().tolist():
        classes = targets["classes"][image]
        there = classes >= 0
        one = _image_loss(logits[image], found[image], classes[there], targets["boxes"][image][there], weights, nothing)
        sums = {name: sums[name] + value for name, value in one.items()}
    return sums


def _image_loss(
    logits: Tensor, found: Tensor, classes: Tensor, boxes: Tensor, weights: tuple[float, float, float], nothing: float
) -> dict[str, Tensor]:
    queries, order = _assigned(logits, found, classes, boxes, weights)
    wanted = torch.full((len(logits),), logits.shape[1] - 1, dtype=torch.int64, device=logits.device)
    wanted[queries] = classes[order]
    emphasis = torch.ones(logits.shape[1], device=logits.device)
    emphasis[-1] = nothing
    loss = weights[0] * F.cross_entropy(logits, wanted, emphasis)
    overlap, general = overlaps(corners(found[queries]), corners(boxes[order]))
    overlap, general = overlap.diagonal(), general.diagonal()
    count = max(len(boxes), 1)
    loss = loss + weights[1] * F.l1_loss(found[queries], boxes[order], reduction="sum") / count
    loss = loss + weights[2] * (1 - general).sum() / count
    right = (logits[queries].argmax(1) == classes[order]).sum()
    return {"loss": loss, "boxes": loss.new_tensor(len(boxes)), "right": right, "overlap": overlap.sum().detach()}


@torch.no_grad()
def _assigned(
    logits: Tensor, found: Tensor, classes: Tensor, boxes: Tensor, weights: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    """Queries and the boxes that they get, at the least cost."""
    from scipy.optimize import linear_sum_assignment

    cost = -weights[0] * logits.softmax(1)[:, classes] + weights[1] * torch.cdist(found, boxes, p=1)
    cost = cost - weights[2] * overlaps(corners(found), corners(boxes))[1]
    queries, order = linear_sum_assignment(cost.double().cpu().numpy())
    device = logits.device
    return torch.as_tensor(queries, device=device), torch.as_tensor(order, device=device)


def corners(boxes: Tensor) -> Tensor:
    """Left, top, right and bottom of boxes that are given as middle and size: [boxes, 4]."""
    middle, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([middle - half, middle + half], 1)


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection by union of every pair, and the generalised one (https://arxiv.org/abs/1902.09630): [one, other]."""
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (one, other)]
    inner = torch.minimum(one[:, None, 2:], other[None, :, 2:]) - torch.maximum(one[:, None, :2], other[None, :, :2])
    outer = torch.maximum(one[:, None, 2:], other[None, :, 2:]) - torch.minimum(one[:, None, :2], other[None, :, :2])
    both = inner.clamp(min=0).prod(2)
    union = areas[0][:, None] + areas[1][None] - both
    share, hull = both / union.clamp(min=1e-9), outer.prod(2).clamp(min=1e-9)
    return share, share - (hull - union) / hull
