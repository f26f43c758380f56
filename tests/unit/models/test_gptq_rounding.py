"""GPTQ quantisation gives layer and model outputs with a smaller error than rounding to the nearest value, except on
uncorrelated inputs, where both are the same.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled
from torch import Tensor
from trireme.models.other_families import described
from trireme.models.quantization import gptq_rounding
from trireme.models.quantization.calibrate import calibrated, output_error
from trireme.models.quantization.gptq_numbers import GptqNumbers
from trireme.models.quantization.gptq_rounding import GptqRounding
from trireme.models.quantization.quantised_layer import layer_sizes, oriented


def _problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and the second moments of correlated inputs, like those of real layers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator)
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + 0.3 * torch.eye(inputs)
    entered = torch.randn(512, inputs, generator=generator) @ mixing
    return weight, entered.T @ entered


def _error(form: GptqNumbers, parts: dict[str, Tensor], weight: Tensor, moments: Tensor) -> float:
    return output_error(weight, form.unpack(parts, *weight.shape, torch.float32), moments)


@pytest.mark.parametrize(
    ("form", "by_activity"),
    [
        (GptqNumbers(4, 32), False),
        (GptqNumbers(4, 32), True),
        (GptqNumbers(3, -1, False), False),
        (GptqNumbers(2, 16, False), True),
        (GptqNumbers(8, 64, shift=0), False),
    ],
)
def test_outputs_are_nearer_than_with_numbers_rounded_alone(form: GptqNumbers, by_activity: bool) -> None:
    weight, moments = _problem(64, 128)
    parts = GptqRounding(form, by_activity=by_activity).parts(weight, moments)
    assert {name: (tuple(one.shape), one.dtype) for name, one in parts.items()} == form.parts(64, 128)
    found, nearest = (_error(form, one, weight, moments) for one in (parts, form.pack(weight)))
    assert found < 0.75 * nearest, (found, nearest)


def test_inputs_that_know_nothing_of_each_other_are_rounded_alone() -> None:
    weight, _ = _problem(32, 64)
    form = GptqNumbers(4, 16)
    parts, nearest = GptqRounding(form).parts(weight, 3.0 * torch.eye(64)), form.pack(weight)
    assert all(torch.equal(parts[name], nearest[name]) for name in nearest)


@pytest.mark.parametrize("group", [16, 24, 48, -1])
def test_the_error_does_not_depend_on_the_portion_size(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = _problem(32, 96)
    search, errors = GptqRounding(GptqNumbers(4, group)), []
    for portion in (1, 16, 36, 96):
        monkeypatch.setattr(gptq_rounding, "PORTION", portion)
        errors.append(_error(search.form, search.parts(weight, moments), weight, moments))
    assert max(errors) < 1.01 * min(errors), errors


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    weight, moments = _problem(32, 64)
    moments[:, 5] = moments[5] = 0
    parts = GptqRounding(GptqNumbers(4, 32)).parts(weight, moments)
    found = GptqNumbers(4, 32).unpack(parts, 32, 64, torch.float32)
    assert found.isfinite().all() and found[:, 5].abs().max() == 0


@torch.no_grad()
def _distance(model: Any, other: Any, batches: list[dict[str, Tensor]]) -> float:
    return sum((model(**batch).logits - other(**batch).logits).square().mean().item() for batch in batches)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_calibrated_model_is_nearer_than_a_rounded_one(family: str) -> None:
    """Blocks are quantised one after the other, on inputs whose padding does not count."""
    config = config_of(family)
    exact = filled(config)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(4):
        tokens = torch.randint(0, 64, (8, 16), generator=generator)
        mask = torch.ones_like(tokens)
        mask[:, 12:] = 0
        batches.append({"input_ids": tokens, "attention_mask": mask})
    form = GptqNumbers(4, 32)
    layers = [
        path
        for path, module in exact.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and "lm_head" not in path
    ]
    spec = described(dataclasses.replace(config).spec, exact)
    lines: list[str] = []
    found = copy.deepcopy(exact)
    parts = dict(calibrated(found, spec, layers, batches, GptqRounding(form), lines.append))
    assert parts.keys() == set(layers) and len(lines) == 2 and "outputs are off by" in lines[0]
    rounded = copy.deepcopy(exact)
    with torch.no_grad():
        for path in layers:
            layer, mine = rounded.get_submodule(path), found.get_submodule(path)
            whole = form.unpack(parts[path], *layer_sizes(mine), torch.float32)
            assert torch.equal(oriented(mine, mine.weight), whole)
            nearest = form.pack(oriented(layer, layer.weight).float())
            layer.weight.copy_(oriented(layer, form.unpack(nearest, *layer_sizes(layer), torch.float32)))
    cut = [{"input_ids": batch["input_ids"][:, :12]} for batch in batches]
    assert _distance(exact, found, cut) < 0.7 * _distance(exact, rounded, cut)
