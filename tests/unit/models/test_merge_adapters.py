"""Merging adapters tile by tile equals merging at once, bit for bit, and the merged model gives the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled, logits, shaken
from torch import nn
from trireme.models import merge_adapters
from trireme.models.adapter_config import AdapterConfig
from trireme.models.adapter_plan import AdapterPlan
from trireme.models.low_rank import adapted_layers, adapter_in
from trireme.models.merge_adapters import Delta, delta_of, merged_rows, merged_tensor, tiles


def _delta(rows: int, columns: int, rank: int, dora: bool, transposed: bool) -> tuple[torch.Tensor, Delta]:
    torch.manual_seed(rows)
    outputs, inputs = (columns, rows) if transposed else (rows, columns)
    magnitude = torch.rand(outputs) if dora else None
    return torch.randn(rows, columns), Delta(
        torch.randn(rank, inputs), torch.randn(outputs, rank), 0.3, magnitude, transposed
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_merging_by_tiles_equals_merging_at_once(dora: bool, transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles cover a weight, their merge does not depend on how it is read, and the sum is right."""
    monkeypatch.setattr(merge_adapters, "TILE", 1000)
    base, delta = _delta(123, 97, 8, dora, transposed)
    assert len(list(tiles(base.shape))) > 5
    whole = merged_tensor(base, delta)
    rows = merged_rows(lambda start, stop: base[start:stop].clone(), base.shape, delta)
    parts = [rows(start, stop) for start, stop in tiles(base.shape)]
    assert torch.equal(torch.cat(parts), whole)
    product = delta.scale * (delta.up @ delta.down)
    wanted = base + (product.T if transposed else product)
    if dora:
        norms = wanted.norm(dim=0 if transposed else 1)
        wanted = wanted * (delta.magnitude / norms).unsqueeze(0 if transposed else 1)
    torch.testing.assert_close(whole, wanted, rtol=1e-5, atol=1e-6)


def test_comparing_bits_notices_a_tiny_change() -> None:
    """A product of fewer rows may be rounded differently, which is why tiles have a fixed size."""
    base, delta = _delta(123, 97, 8, False, False)
    moved = merged_tensor(base, Delta(delta.down, delta.up * (1 + 2**-20), delta.scale))
    assert not torch.equal(moved, merged_tensor(base, delta))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", [{}, {"dora": True}, {"rslora": True, "rank_pattern": {"c_proj|o_proj": 3}}])
def test_a_merged_model_is_the_adapted_one(family: str, adapter: dict[str, Any]) -> None:
    model = filled(config_of(family, AdapterConfig(**adapter)))
    shaken(model)
    wanted = logits(model)
    merged = filled(config_of(family))
    parts = dict(model.named_parameters())
    for path, layer in adapted_layers(model):
        found = adapter_in(layer)
        assert found is not None
        rank = layer.lora_A.shape[0]
        plan = AdapterPlan({path: rank}, {path: found.scaling * rank}, dora=found.directional)
        own = merged.get_submodule(path)
        assert isinstance(own, nn.Module)
        with torch.no_grad():
            own.weight.copy_(merged_tensor(own.weight, delta_of(path, plan, lambda name: parts[name].detach(), own)))
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-4, atol=1e-5)
