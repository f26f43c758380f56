"""Tests of loading weights that are stored in the formats of GPTQ and AWQ, and of rounding weights to these formats.

The reference unpacks the published layouts one number at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled, logits, on_meta
from helpers.quantised import from_folder, whole_folder, write_codes
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from trireme.models.check_model import check_model
from trireme.models.model_config import ModelConfig
from trireme.models.quantization.awq_numbers import AwqNumbers
from trireme.models.quantization.bit_fields import pack_rows, unpack_rows
from trireme.models.quantization.gptq_numbers import GptqNumbers
from trireme.models.quantization.published import published
from trireme.models.quantization.quantised_layer import layer_sizes, quantised_layers
from trireme.trainer.checkpoint.export.unpacked_folder import needs_unpacking, unpack_folder

GROUP = 8


def _random(generator: torch.Generator, *shape: int) -> Tensor:
    """Random integers of 32 bits; every integer holds valid codes."""
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def _field(word: int, start: int, width: int) -> int:
    return ((word & 0xFFFFFFFF) >> start) & (2**width - 1)


def _stream_field(words: list[int], number: int, width: int) -> int:
    """The ``number``-th field of a stream of bits that fills one integer after the other."""
    joined = sum((word & 0xFFFFFFFF) << 32 * place for place, word in enumerate(words))
    return (joined >> number * width) & (2**width - 1)


def gptq_layer(outputs: int, inputs: int, width: int, shift: int, order: bool, seed: int) -> tuple[dict, Tensor]:
    """Random tensors of a GPTQ layer, and the weight that they represent."""
    generator = torch.Generator().manual_seed(seed)
    groups = -(-inputs // GROUP)
    tensors = {
        "qweight": _random(generator, inputs * width // 32, outputs),
        "qzeros": _random(generator, groups, outputs * width // 32),
        "scales": (0.01 + 0.02 * torch.rand(groups, outputs, generator=generator)).half(),
        "g_idx": (torch.arange(inputs) // GROUP).to(torch.int32),
    }
    if order:
        tensors["g_idx"] = tensors["g_idx"][torch.randperm(inputs, generator=generator)]
    weight = torch.empty(outputs, inputs)
    for row in range(outputs):
        column = tensors["qweight"][:, row].tolist()
        for place in range(inputs):
            group = int(tensors["g_idx"][place])
            zero = _stream_field(tensors["qzeros"][group].tolist(), row, width) + shift
            code = _stream_field(column, place, width)
            weight[row, place] = float(tensors["scales"][group, row]) * (code - zero)
    return tensors, weight


def awq_layer(outputs: int, inputs: int, seed: int) -> tuple[dict, Tensor]:
    """Random tensors of an AWQ layer, and the weight that they represent."""
    generator = torch.Generator().manual_seed(seed)
    groups = inputs // GROUP
    tensors = {
        "qweight": _random(generator, inputs, outputs // 8),
        "qzeros": _random(generator, groups, outputs // 8),
        "scales": (0.01 + 0.02 * torch.rand(groups, outputs, generator=generator)).half(),
    }
    nibble = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}  # output within its eight -> place in the integer
    weight = torch.empty(outputs, inputs)
    for row in range(outputs):
        start = 4 * nibble[row % 8]
        for place in range(inputs):
            group = place // GROUP
            code = _field(int(tensors["qweight"][place, row // 8]), start, 4)
            zero = _field(int(tensors["qzeros"][group, row // 8]), start, 4)
            weight[row, place] = float(tensors["scales"][group, row]) * (code - zero)
    return tensors, weight


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_folder(tmp_path_factory.mktemp("base") / "llama", "llama")


def _layers(*endings: str) -> dict[str, tuple[int, int]]:
    model = on_meta(config_of("llama"))
    found = {path: module for path, module in model.named_modules() if path.endswith(endings)}
    return {path: layer_sizes(module) for path, module in found.items()}


def _logits_with(base: Path, weights: dict[str, Tensor]) -> Tensor:
    model = filled(ModelConfig(weights=str(base)))
    with torch.no_grad():
        for path, weight in weights.items():
            model.get_submodule(path).weight.copy_(weight)
    return logits(model)


@pytest.mark.parametrize(
    ("width", "layout", "order"), [(4, "gptq", False), (4, "gptq_v2", True), (8, "gptq", True), (2, "gptq", False)]
)
def test_gptq_folders_are_read(width: int, layout: str, order: bool, base: Path, tmp_path: Path) -> None:
    shift = 1 if layout == "gptq" else 0
    made = {
        path: gptq_layer(outputs, inputs, width, shift, order, seed)
        for seed, (path, (outputs, inputs)) in enumerate(_layers("q_proj", "down_proj").items())
    }
    said = {"bits": width, "group_size": GROUP, "desc_act": order, "sym": False, "checkpoint_format": layout}
    folder = write_codes(base, tmp_path / "gptq", "gptq", {path: one for path, (one, _) in made.items()}, **said)
    model = filled(from_folder(folder, method="stored"))
    layers = dict(quantised_layers(model))
    assert layers.keys() == made.keys()
    for path, (_, weight) in made.items():
        torch.testing.assert_close(layers[path].weight, weight, rtol=1e-6, atol=1e-6)
    wanted = _logits_with(base, {path: weight for path, (_, weight) in made.items()})
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
    assert check_model(from_folder(folder, method="stored"), 8) == []


def test_three_bits_are_a_stream() -> None:
    tensors, weight = gptq_layer(32, 32, 3, 1, False, 0)
    form = GptqNumbers(3, GROUP, False)
    parts = {"packed": tensors["qweight"], "zeros": tensors["qzeros"], "groups": tensors["g_idx"]}
    parts["scales"] = tensors["scales"].view(torch.uint8)
    torch.testing.assert_close(form.unpack(parts, 32, 32, torch.float32), weight, rtol=1e-6, atol=1e-6)


def test_awq_folders_are_read(base: Path, tmp_path: Path) -> None:
    made = {
        path: awq_layer(outputs, inputs, seed)
        for seed, (path, (outputs, inputs)) in enumerate(_layers("k_proj", "up_proj").items())
    }
    tensors = {path: one for path, (one, _) in made.items()}
    folder = write_codes(base, tmp_path / "awq", "awq", tensors, bits=4, group_size=GROUP, version="gemm")
    model = filled(from_folder(folder, method="stored"))
    for path, layer in quantised_layers(model):
        torch.testing.assert_close(layer.weight, made[path][1], rtol=1e-6, atol=1e-6)
    wanted = _logits_with(base, {path: weight for path, (_, weight) in made.items()})
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_unpacking_reverses_packing(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (64, 5), generator=torch.Generator().manual_seed(bits)).to(torch.int32)
    words = pack_rows(codes, bits)
    assert words.shape == (64 * bits // 32, 5) and torch.equal(unpack_rows(words, bits), codes)


@pytest.mark.parametrize(
    "form", [GptqNumbers(4, GROUP), GptqNumbers(8, -1, False), GptqNumbers(3, GROUP, shift=0), AwqNumbers(GROUP)]
)
def test_rounding_keeps_within_half_a_step(form: Any) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    parts = form.pack(weight)
    assert {name: (tuple(one.shape), one.dtype) for name, one in parts.items()} == form.parts(32, 64)
    steps = parts["scales"].view(torch.float16).float()
    found = form.unpack(parts, 32, 64, torch.float32)
    half = steps.T.repeat_interleave(64 // steps.shape[0], 1) / 2
    assert ((found - weight).abs() <= half * 1.02).all()  # scales are rounded to half precision


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [GptqNumbers, AwqNumbers])
def test_parts_have_types_that_ranks_can_send(make: Any, kind: torch.dtype) -> None:
    """Neither gloo nor NCCL sends integers of 16 bits."""
    form = make(group_size=GROUP, scale_type=kind)
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    parts = form.pack(weight)
    assert {name: (tuple(one.shape), one.dtype) for name, one in parts.items()} == form.parts(32, 64)
    assert {one.dtype for one in parts.values()} <= {torch.uint8, torch.int32}
    assert form.unpack(parts, 32, 64, torch.float32).sub(weight).abs().max() < 0.3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"quant_method": "hqq"}, "quantised by hqq"),
        ({"quant_method": "awq", "version": "gemv"}, "only gemm of 4 bits"),
        ({"quant_method": "gptq", "bits": 5}, "2, 3, 4 and 8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "gptq", "bits": 4}, "not quantised|lack"),
    ],
)
def test_layouts_that_are_not_read_are_refused(said: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    tensors = {"model.layers.0.self_attn.q_proj": {"qweight": torch.zeros(4, 32, dtype=torch.int32)}}
    rest = {key: value for key, value in said.items() if key != "quant_method"}
    folder = write_codes(base, tmp_path / "odd", said["quant_method"], tensors, **rest)
    (problem,) = check_model(from_folder(folder, method="stored"), 8)
    assert problem.field == "model.weights" and any(word in problem.why for word in words.split("|")), problem


def test_layers_of_gpt2_lie_as_they_are_multiplied(tmp_path: Path) -> None:
    """Folders hold [outputs, inputs], GPT-2's layers [inputs, outputs]; also where they are unpacked for others."""
    base, form = whole_folder(tmp_path / "gpt2", "gpt2"), GptqNumbers(4, GROUP)
    weights = load_file(base / "model.safetensors")
    path, tensors = "transformer.h.1.mlp.c_fc", {}
    stored = next(name for name in weights if name.endswith("h.1.mlp.c_fc.weight")).removesuffix(".weight")
    parts = form.pack(weights[f"{stored}.weight"].T.contiguous())
    for name, one in published(form, stored, parts, tuple(weights[f"{stored}.weight"].T.shape)).items():
        tensors[name.removeprefix(f"{stored}.")] = one
    folder = write_codes(base, tmp_path / "gptq", "gptq", {stored: tensors}, bits=4, group_size=GROUP)
    model = filled(from_folder(folder, method="stored"))
    wanted = _logits_with(base, {path: dict(quantised_layers(model))[path].weight})
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
    (tmp_path / "whole").mkdir()
    assert needs_unpacking(folder) and not needs_unpacking(base)
    unpack_folder(folder, tmp_path / "whole")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(found), wanted, rtol=1e-5, atol=1e-5)
