"""Tests of torchao's weight-only quantisation with adapters, and of quantisation-aware training (``qat``)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers.adapted import config_of, filled, logits, on_meta
from helpers.quantised import quantised
from torch import nn
from trireme.configs.validate import read
from trireme.errors import UserError
from trireme.models.model_config import ModelConfig
from trireme.models.quantization.footprint import footprint
from trireme.models.quantization.qat_config import QatConfig
from trireme.models.quantization.quantised_layer import quantised_layers
from trireme.models.quantization.torchao_numbers import GroupIntegers, RowNumbers

torchao = pytest.importorskip("torchao.quantization")


def _weight() -> torch.Tensor:
    return torch.randn(48, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_are_those_of_torchao(kind: str) -> None:
    holder = nn.Sequential(nn.Linear(64, 48, bias=False))
    holder[0].weight = nn.Parameter(_weight(), requires_grad=False)
    rows = {"granularity": torchao.PerRow()}
    torchao.quantize_(
        holder, torchao.Int8WeightOnlyConfig() if kind == "int8" else torchao.Float8WeightOnlyConfig(**rows)
    )
    form = RowNumbers(kind)
    parts = form.pack(_weight())
    assert {name: (tuple(one.shape), one.dtype) for name, one in parts.items()} == form.parts(48, 64)
    assert torch.equal(form.unpack(parts, 48, 64, torch.float32), holder[0].weight.dequantize())


def test_groups_are_those_of_torchao() -> None:
    from torchao.quantization.quant_primitives import (
        MappingType,
        choose_qparams_affine,
        dequantize_affine,
        quantize_affine,
    )

    block, limits = (1, 16), (torch.int8, -8, 7)
    kinds = {"scale_dtype": torch.float32, "zero_point_dtype": torch.int32}
    scales, zeros = choose_qparams_affine(_weight(), MappingType.SYMMETRIC, block, *limits, **kinds)
    codes = quantize_affine(_weight(), block, scales, zeros, *limits)
    wanted = dequantize_affine(codes, block, scales, zeros, *limits)
    form = GroupIntegers(16)
    parts = form.pack(_weight())
    assert {name: (tuple(one.shape), one.dtype) for name, one in parts.items()} == form.parts(48, 64)
    torch.testing.assert_close(form.unpack(parts, 48, 64, torch.float32), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("method", "bits"), [("torchao_int8", 8), ("torchao_fp8", 8), ("torchao_int4", 4)])
def test_adapters_are_trained_on_torchao_weights(method: str, bits: int) -> None:
    model = filled(quantised("llama", method=method, group_size=16))
    assert bits < footprint(model).bits <= bits + 2
    model.train()
    before = logits(model)
    model(input_ids=torch.arange(24).reshape(2, 12)).logits.square().mean().backward()
    moved = [one for one in model.parameters() if one.grad is not None]
    assert moved and all(one.requires_grad for one in moved)
    exact = logits(filled(config_of("llama")))
    assert 1e-5 < (before - exact).abs().max() < 0.2


@pytest.mark.parametrize("method", ["int4", "int8"])
def test_a_model_trained_for_a_rounding_is_the_rounded_one(method: str) -> None:
    """Forward passes while training are those of the rounded base, and gradients reach the weights."""
    config = dataclasses.replace(config_of("llama"), qat=QatConfig(method, group_size=16))
    model = filled(config)
    rounded = filled(quantised("llama", method=f"torchao_{method}", group_size=16))
    assert model.state_dict().keys() == on_meta(config_of("llama")).state_dict().keys()
    torch.testing.assert_close(logits(model), logits(rounded), rtol=1e-4, atol=1e-5)
    exact = filled(config_of("llama"))
    for path, layer in quantised_layers(rounded):
        assert torch.equal(model.get_submodule(path).weight, exact.get_submodule(path).weight) and layer.layout
    model.train()
    model(input_ids=torch.arange(24).reshape(2, 12)).logits.square().mean().backward()
    assert all(one.grad is not None for one in model.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot hold"):
        on_meta(dataclasses.replace(config_of("llama"), qat=QatConfig(group_size=48)))
    with pytest.raises(UserError, match="other layers"):
        on_meta(dataclasses.replace(config_of("gpt2"), qat=QatConfig()))
    values = {"family": "llama", "config": config_of("llama").config, "adapter": {"rank": 2}, "qat": {"method": "int4"}}
    _, (problem,) = read(values, ModelConfig)
    assert problem.field == "qat" and "adapters freeze" in problem.why
    with pytest.raises(ValueError, match="even"):
        QatConfig(group_size=7)
