"""Find the parameter names for a torch optimizer's state dict, which identifies its parameters by integers only.

The usual ways in which parameters are split into groups are tried until numbers and shapes fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_pt_utils import get_parameter_names

from .lazy import Lazy, counter, lazily

Groups = list[list[str]]
TRAINER_PATTERNS = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Parts of names whose parameters do not decay, in ``Trainer.get_decay_parameter_names`` of transformers 5."""


def parameter_groups(state: dict[str, Any], model: PreTrainedModel) -> Groups:
    """Parameter names in the order of the numbers in each group of an optimizer's state dict.

    Args:
        state: ``{"state": {number: {...}}, "param_groups": [{"params": [number, ...]}, ...]}``.
        model: the trained model, with the same parameters frozen.

    Raises:
        ValueError: no usual grouping of the model's trainable parameters fits the numbers and shapes.
    """
    numbers = [group["params"] for group in state["param_groups"]]
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    for names in _usual_groupings(model, list(shapes)):
        if _fits(names, numbers, shapes, state["state"]):
            return names
    held, trained = sum(map(len, numbers)), len(shapes)
    if held != trained:
        raise ValueError(
            f"its optimizer steps {held} parameters, but {trained} of the model are trained; "
            "set model.frozen as in that run"
        )
    raise ValueError("its optimizer groups parameters in an unknown way, so the numbers cannot be matched with names")


def optimizer_entries(state: dict[str, Any], model: PreTrainedModel) -> dict[str, Lazy]:
    """The state of an unsharded optimizer by the names of the common layout."""
    entries: dict[str, Lazy] = {}
    groups = parameter_groups(state, model)
    for group, names in zip(state["param_groups"], groups, strict=True):
        for number, name in zip(group["params"], names, strict=True):
            values = dict(state["state"].get(number, {}))
            if values and "step" not in values and "step" in group:  # fused optimizers count per group
                values["step"] = group["step"]
            entries |= {f"optim.{name}.{key}": entry for key, entry in state_entries(values)}
    return entries


def state_entries(values: dict[str, Any]) -> Iterator[tuple[str, Lazy]]:
    """State of one parameter: tensors unchanged, counters as fp32 scalars; other values are left out."""
    for key, value in values.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            yield key, lazily(value)
        elif isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            yield key, counter(value)


def _usual_groupings(model: PreTrainedModel, trained: list[str]) -> Iterator[Groups]:
    """Groupings to try: Trainer's of transformers 5 and 4, matrices apart from vectors, one group."""
    rules = [
        set(get_parameter_names(model, [nn.LayerNorm], TRAINER_PATTERNS)),
        set(get_parameter_names(model, [nn.LayerNorm], ["bias"])),
        {name for name, p in model.named_parameters() if p.ndim >= 2},
    ]
    for decaying in rules:
        split = [[n for n in trained if n in decaying], [n for n in trained if n not in decaying]]
        yield split
        yield split[::-1]
        yield [names for names in split if names]
    yield [trained]


def _fits(names: Groups, numbers: list[list[int]], shapes: dict[str, torch.Size], state: dict[int, Any]) -> bool:
    if [len(group) for group in names] != [len(group) for group in numbers]:
        return False
    pairs = (pair for group in zip(names, numbers, strict=True) for pair in zip(*group, strict=True))
    return all(_moment_shape(state.get(number, {})) in (None, shapes[name]) for name, number in pairs)


def _moment_shape(values: dict[str, Any]) -> torch.Size | None:
    """Shape of the moments of AdamW, Lion and SGD; None for other optimizers."""
    for key in ("exp_avg", "momentum_buffer"):
        if isinstance(values.get(key), Tensor):
            return values[key].shape
    return None
