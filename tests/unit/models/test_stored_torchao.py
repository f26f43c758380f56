"""Tests of loading weights quantised by torchao, from hand-written files and from files that the library saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled, logits, on_meta
from helpers.quantised import from_folder, whole_folder
from safetensors.torch import load_file, save_file
from torch import Tensor
from trireme.models.check_model import check_model
from trireme.models.model_config import ModelConfig
from trireme.models.quantization.quantised_layer import layer_sizes, quantised_layers

GROUP = 16
CONFIG = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}


def int8_layer(outputs: int, inputs: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    """Random stored tensors of a layer, their description in the file's header, and the weight that they represent."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-128, 128, (outputs, inputs), generator=generator).to(torch.int8)
    scales = (0.001 + 0.001 * torch.rand(outputs, 1, generator=generator)).bfloat16()
    said = {"block_size": [1, inputs], "dtype": {"_type": "torch.dtype", "_data": "bfloat16"}, "act_quant_kwargs": None}
    return {"qdata": numbers, "scale": scales}, {"_type": "Int8Tensor", "_data": said}, numbers.float() * scales.float()


def float8_layer(outputs: int, inputs: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    parts, said, _ = int8_layer(outputs, inputs, seed)
    numbers = (parts["qdata"].float() / 64).to(torch.float8_e4m3fn)
    weight = numbers.float() * parts["scale"].float()
    return {**parts, "qdata": numbers}, {**said, "_type": "Float8Tensor"}, weight


def int4_layer(outputs: int, inputs: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Any], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-8, 8, (outputs, inputs), generator=generator).to(torch.int8)
    scales = 0.01 + 0.01 * torch.rand(outputs, inputs // GROUP, generator=generator)
    said = {
        "target_dtype": {"_type": "torch.dtype", "_data": "int4"},
        "block_size": [1, GROUP],
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
        "activation_quantization": None,
    }
    parts = {"qdata": numbers, "scale": scales, "zero_point": torch.zeros_like(scales).to(torch.int8)}
    weight = numbers.float() * scales.repeat_interleave(GROUP, 1)
    return parts, {"_type": "IntxUnpackedToInt8Tensor", "_data": said}, weight


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_folder(tmp_path_factory.mktemp("base") / "llama", "llama")


def write_folder(source: Path, folder: Path, layers: dict[str, tuple[dict[str, Tensor], dict[str, Any]]]) -> Path:
    """Copy a weight folder, with some weights in the form in which torchao saves them."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    about = {name: {"_type": "Tensor"} for name in tensors}
    for path, (parts, said) in layers.items():
        del tensors[f"{path}.weight"]
        tensors |= {f"{path}._weight_{part}": one for part, one in parts.items()}
        about[f"{path}.weight"] = {**said, "_tensor_data_names": list(parts)}
    head = {name: json.dumps(said) for name, said in about.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt", **head, "tensor_names": json.dumps(list(about))})
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": CONFIG}))
    return folder


def sizes(*endings: str) -> dict[str, tuple[int, int]]:
    model = on_meta(config_of("llama"))
    return {path: layer_sizes(one) for path, one in model.named_modules() if path.endswith(endings)}


@pytest.mark.parametrize("layer", [int8_layer, float8_layer, int4_layer], ids=["int8", "fp8", "int4"])
def test_layers_are_read_number_by_number(layer: Any, base: Path, tmp_path: Path) -> None:
    made = {path: layer(*size, seed) for seed, (path, size) in enumerate(sizes("q_proj", "down_proj").items())}
    folder = write_folder(base, tmp_path / "torchao", {path: (one, said) for path, (one, said, _) in made.items()})
    assert check_model(from_folder(folder, method="stored"), 8) == []
    model = filled(from_folder(folder, method="stored"))
    layers = dict(quantised_layers(model))
    assert layers.keys() == made.keys()
    for path, (_, _, weight) in made.items():
        torch.testing.assert_close(layers[path].weight, weight, rtol=1e-6, atol=1e-7)
    whole = filled(ModelConfig(weights=str(base)))
    with torch.no_grad():
        for path, (_, _, weight) in made.items():
            whole.get_submodule(path).weight.copy_(weight)
    torch.testing.assert_close(logits(model), logits(whole), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_type": "Int4Tensor"}, "as Int4Tensor of torchao"),
        ({"act_quant_kwargs": {"_type": "QuantizeTensorToInt8Kwargs", "_data": {}}}, "which quantises inputs too"),
        ({"block_size": [1, 8]}, "scales for blocks of [1, 8]"),
        ({"lacking": "scale"}, "lack model.layers.0.self_attn.q_proj._weight_scale"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_read_is_refused_by_name(changes: dict[str, Any], words: str, base: Path, tmp_path: Path) -> None:
    path, size = next(iter(sizes("q_proj").items()))
    parts, said, _ = int8_layer(*size, 0)
    if "_type" in changes:
        said = {**said, **changes}
    else:
        said = {**said, "_data": {**said["_data"], **{key: one for key, one in changes.items() if key != "lacking"}}}
    folder = write_folder(base, tmp_path / "odd", {path: (parts, said)})
    if lacking := changes.get("lacking"):
        file = folder / "model.safetensors"
        from safetensors import safe_open

        with safe_open(str(file), framework="pt") as opened:
            head = opened.metadata()
        tensors = load_file(file)
        del tensors[f"{path}._weight_{lacking}"]
        save_file(tensors, file, head)
    (problem,) = check_model(from_folder(folder, method="stored"), 8)
    assert problem.field == "model.weights" and words in problem.why, problem


def test_zeros_are_refused(base: Path, tmp_path: Path) -> None:
    from trireme.errors import UserError

    path, size = next(iter(sizes("q_proj").items()))
    parts, said, _ = int4_layer(*size, 0)
    parts["zero_point"][0, 0] = 3
    folder = write_folder(base, tmp_path / "zeros", {path: (parts, said)})
    with pytest.raises(UserError, match="zero points other than 0"):
        filled(from_folder(folder, method="stored"))


@pytest.mark.parametrize("kind", ["int8", "fp8", "int4"])
def test_folders_of_the_library_are_read(kind: str, base: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("torchao.quantization")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = {
        "int8": lambda: library.Int8WeightOnlyConfig(),
        "fp8": lambda: library.Float8WeightOnlyConfig(granularity=library.PerRow()),
        "int4": lambda: library.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=library.PerGroup(GROUP), mapping_type=library.MappingType.SYMMETRIC
        ),
    }[kind]()
    saved = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=TorchAoConfig(quant_type=config), dtype=torch.float32
    )
    saved.save_pretrained(tmp_path / "saved")
    model = filled(from_folder(tmp_path / "saved", method="stored"))
    assert len(dict(quantised_layers(model))) == len(sizes("_proj"))
    torch.testing.assert_close(logits(model), logits(saved.eval()), rtol=1e-4, atol=1e-4)
