"""Tests of quantised base models: values equal those of bitsandbytes, memory is as expected, gradients are right, some
layers stay unquantised, adapters combine with them, and wrong options are refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import config_of, filled, logits, on_meta, shaken
from helpers.quantised import by_bitsandbytes, from_folder, quantised, whole_folder
from trireme.configs.validate import read
from trireme.errors import UserError
from trireme.models.adapter_config import AdapterConfig, MergedAdapter
from trireme.models.build_model import weight_source
from trireme.models.check_model import check_model
from trireme.models.flops import training_flops_per_token
from trireme.models.model_config import ModelConfig
from trireme.models.other_families import described
from trireme.models.quantization.check_quantization import check_quantization
from trireme.models.quantization.footprint import footprint, logical_count
from trireme.models.quantization.four_bits import FourBits
from trireme.models.quantization.quantised_layer import quantised_layers, with_whole_weights
from trireme.models.quantization.quantization_config import QuantizationConfig

LIKE_BITSANDBYTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nf4": ({"method": "nf4"}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    "fp4": ({"method": "fp4", "double": False}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    "int8": ({"method": "int8"}, {"load_in_8bit": True}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {family: whole_folder(folder / family, family) for family in ("llama", "gpt2")}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", LIKE_BITSANDBYTES)
def test_numbers_are_those_of_bitsandbytes(name: str, family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """The codes are computed from unquantised weights, or read from a folder that transformers quantised and saved."""
    ours, theirs = LIKE_BITSANDBYTES[name]
    reference = by_bitsandbytes(bases[family], **theirs)
    wanted = logits(reference)
    found = filled(from_folder(bases[family], **ours))
    torch.testing.assert_close(logits(found), wanted, rtol=1e-6, atol=1e-6)
    assert (wanted - logits(filled(ModelConfig(weights=str(bases[family]))))).abs().max() > 1e-4
    reference.save_pretrained(tmp_path / "saved")
    stored = filled(from_folder(tmp_path / "saved", method="stored"))
    assert torch.equal(logits(stored), logits(found))
    for (path, layer), (_, other) in zip(quantised_layers(found), quantised_layers(stored), strict=True):
        for part, tensor in layer.parts().items():
            assert torch.equal(tensor, other.parts()[part]), (path, part)


def test_layers_in_other_storage_types_are_read(bases: dict[str, Path], tmp_path: Path) -> None:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16}
    by_bitsandbytes(bases["llama"], **options).save_pretrained(tmp_path / "saved")
    stored = filled(from_folder(tmp_path / "saved", method="stored"))
    assert torch.equal(logits(stored), logits(filled(from_folder(bases["llama"], method="nf4", double=False))))


@pytest.mark.parametrize("method", ["nf4", "int8"])
def test_gradients_are_those_of_the_unpacked_weights(method: str) -> None:
    config = quantised("llama", adapter=AdapterConfig(rank=2, dora=True, init="random"), method=method)
    packed = filled(config)
    plain = with_whole_weights(on_meta(config)).to_empty(device="cpu")
    values = dict(packed.named_parameters())
    layers = dict(quantised_layers(packed))
    with torch.no_grad():
        for name, one in plain.named_parameters():
            path = name.removesuffix(".weight")
            one.copy_(layers[path].weight if path in layers else values[name])
        for name, buffer in plain.named_buffers():
            buffer.copy_(packed.get_buffer(name))
    tokens = torch.arange(24).reshape(2, 12)
    for model in (packed, plain):
        model.train()
        model(input_ids=tokens).logits.square().mean().backward()
    for name, one in plain.named_parameters():
        if one.requires_grad:
            torch.testing.assert_close(values[name].grad, one.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_heads_tied_and_named_layers_are_left_alone() -> None:
    def kinds(config: ModelConfig) -> set[str]:
        return {path.rpartition(".")[2] for path, _ in quantised_layers(on_meta(config))}

    everything = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert kinds(quantised("llama", method="nf4")) == everything
    assert kinds(quantised("llama", method="nf4", skip=["down_proj", "*.self_attn.*"])) == {"gate_proj", "up_proj"}
    trained = AdapterConfig(rank=2, targets=["q_proj"], modules_to_save=["up_proj"])
    assert kinds(quantised("llama", method="int8", adapter=trained)) == everything - {"up_proj"}
    assert kinds(quantised("gpt2", method="nf4")) == {"c_attn", "c_proj", "c_fc"}


def test_what_an_architecture_keeps_in_fp32_is_left_alone() -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = ModelConfig("t5", sizes, adapter=AdapterConfig(rank=2), quantization=QuantizationConfig())
    names = {path.rpartition(".")[2] for path, _ in quantised_layers(on_meta(config, "seq2seq_lm"))}
    assert {"q", "k", "v", "o", "wi"} <= names and "wo" not in names


def test_a_model_without_a_family_file_is_quantised() -> None:
    sizes = {"model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = ModelConfig("auto", sizes, adapter=AdapterConfig(rank=2), quantization=QuantizationConfig())
    model = filled(config)
    assert len([*quantised_layers(model)]) == 14
    assert logits(model).isfinite().all()


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({"method": "nf4", "double": False}, 4 + 32 / 64),
        ({"method": "nf4"}, 4 + 8 / 64 + 32 / (64 * 256)),
        ({"method": "fp4", "double": False, "group_size": 128}, 4 + 32 / 128),
        ({"method": "int8"}, 8 + 32 / 512),
    ],
)
def test_the_footprint_is_the_formula(options: dict[str, Any], bits: float) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = ModelConfig("llama", sizes, adapter=AdapterConfig(rank=2), quantization=QuantizationConfig(**options))
    model = filled(config)
    found = footprint(model)
    parts = [part for _, layer in quantised_layers(model) for part in layer.parts().values()]
    held = sum(part.untyped_storage().nbytes() for part in parts)
    mean = 32 * 7 / found.numbers if options.get("double", True) and options["method"] == "nf4" else 0
    assert found.quantised == held and found.numbers == 7 * 512 * 512
    assert found.bits == pytest.approx(bits + mean, rel=1e-9)
    everything = sum(one.untyped_storage().nbytes() for one in model.parameters())
    assert found.total == everything and footprint(on_meta(config)) == found
    whole = dataclasses.replace(config, quantization=None)
    assert logical_count(model) == sum(one.numel() for one in on_meta(whole).parameters())
    flops = [training_flops_per_token(on_meta(one), described(one.spec, model), 32) for one in (config, whole)]
    assert flops[0] == flops[1]


def test_memory_of_a_plan_counts_bytes() -> None:
    from trireme.parallel.memory import Step, estimate, model_sizes
    from trireme.parallel.plan import Degrees, Plan

    config = quantised("llama", method="nf4")
    model = on_meta(config)
    memory = estimate(Plan(name="single"), Degrees(), model_sizes(model, config.spec), Step(1, 32, 1))
    assert memory.parameters == pytest.approx(footprint(model).total, rel=1e-3)


def test_other_modules_are_kept_in_half_precision() -> None:
    config = quantised(
        "llama", method="nf4", other_dtype="bf16", adapter=AdapterConfig(rank=2, modules_to_save=["lm_head"])
    )
    model = filled(config)
    kinds = {name: one.dtype for name, one in model.named_parameters()}
    assert kinds["model.embed_tokens.weight"] == kinds["model.norm.weight"] == torch.bfloat16
    assert kinds["lm_head.weight"] == kinds["model.layers.0.mlp.up_proj.lora_A"] == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert logits(model).isfinite().all()
    (problem,) = check_quantization(config.quantization, "fp32")
    assert problem.field == "model.quantization.other_dtype" and "plan.precision=bf16" in problem.fix
    assert check_quantization(config.quantization, "bf16") == []


def test_products_have_the_type_that_is_asked_for() -> None:
    model = filled(quantised("llama", method="nf4", compute_dtype="bf16"))
    layer = next(layer for _, layer in quantised_layers(model))
    assert layer.weight.dtype == torch.bfloat16 and layer(torch.ones(1, layer.sizes[1])).dtype == torch.float32
    exact = filled(quantised("llama", method="nf4"))
    assert 1e-6 < (logits(model) - logits(exact)).abs().max() < 0.05


def test_outliers_of_inputs_are_multiplied_in_full() -> None:
    """LLM.int8 with a threshold quantises inputs, except features with a value beyond it."""
    inputs = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    inputs[:, 3] *= 40
    errors = {}
    for threshold in (None, 1e4, 6.0):
        model = filled(quantised("llama", method="int8", threshold=threshold))
        layer = model.get_submodule("model.layers.0.self_attn.q_proj")
        errors[threshold] = (layer(inputs) - inputs @ layer.weight.T).abs().max().item()
    assert errors[None] < 1e-5 < 10 * errors[6.0] < errors[1e4]


@pytest.mark.parametrize("rows", [1, 7])
def test_packing_depends_on_the_weight_alone(rows: int) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    form = FourBits("nf4")
    once = form.pack(weight)
    for _ in range(rows):
        torch.randn(5)
        again = form.pack(weight.clone())
        assert all(torch.equal(once[part], again[part]) for part in once)


def test_dora_begins_with_the_rounded_base() -> None:
    """DoRA's first lengths are those of the rounded rows, so that it begins with the outputs of the base."""
    plain, dora = (
        filled(quantised("gpt2", method="nf4", adapter=AdapterConfig(rank=2, dora=on))) for on in (False, True)
    )
    torch.testing.assert_close(logits(plain), logits(dora), rtol=1e-5, atol=1e-6)
    shaken(dora)
    assert (logits(plain) - logits(dora)).abs().max() > 1e-3


def test_adapters_of_others_are_merged_before_rounding(bases: dict[str, Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(bases["llama"], dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = {"one": MergedAdapter(str(tmp_path / "adapter"))}
    found = filled(dataclasses.replace(from_folder(bases["llama"], method="nf4"), merged_adapters=merged))
    wanted = filled(from_folder(tmp_path / "merged", method="nf4"))
    torch.testing.assert_close(logits(found), logits(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"quantization": {"method": "nf4"}, "adapter": None}, "model.quantization", "adapter=lora"),
        ({"quantization": {"method": "nf4", "group_size": 48}}, "model.quantization.group_size", "64"),
        ({"quantization": {"method": "nf4", "threshold": 6}}, "model.quantization.threshold", "int8"),
        ({"quantization": {"method": "int8", "threshold": -1}}, "model.quantization.threshold", "positive"),
        ({"quantization": {"method": "stored"}}, "model.quantization.method", "model.weights"),
        ({"quantization": {"load_in_4bit": True}}, "model.quantization.load_in_4bit", "model.quantization.method=nf4"),
        ({"quantization": {"bnb_4bit_quant_type": "nf4"}}, "model.quantization.bnb_4bit_quant_type", "method"),
        ({"quantization": {"method": "int4"}}, "model.quantization.method", "nf4"),
    ],
)
def test_wrong_values_are_refused_with_what_to_write(values: dict[str, Any], field: str, words: str) -> None:
    config = config_of("llama")
    raw = {"family": "llama", "config": config.config, "adapter": {"rank": 2}, **values}
    _, problems = read(raw, ModelConfig)
    told = {f"model.{problem.field}": f"{problem.why} {problem.fix}" for problem in problems}
    assert field in told and words in told[field], told


@pytest.mark.parametrize(
    ("family", "quantization", "words"),
    [
        ("llama", {"skip": ["query"]}, ("model.quantization.skip", "q_proj")),
        ("llama", {"skip": ["*"]}, ("leaves no layer",)),
    ],
)
def test_layers_that_cannot_be_chosen_are_refused(family: str, quantization: dict, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        on_meta(quantised(family, **quantization))
    assert all(word in str(error.value) for word in words)


def test_a_family_without_linear_layers_is_refused() -> None:
    adapter = AdapterConfig(rank=2, targets=["classifier.1"])
    sizes = {"model_type": "resnet", "hidden_sizes": [8, 8], "depths": [1, 1], "embedding_size": 8}
    config = ModelConfig("auto", sizes, adapter=adapter, frozen_batchnorm=True, quantization=QuantizationConfig())
    with pytest.raises(UserError, match="leaves no layer"):
        on_meta(config, "image_classification", ("a", "b"))


def test_quantised_folders_and_whole_ones_are_told_apart(bases: dict[str, Path], tmp_path: Path) -> None:
    options = LIKE_BITSANDBYTES["nf4"][1]
    by_bitsandbytes(bases["llama"], **options).save_pretrained(tmp_path / "saved")
    (problem,) = check_model(from_folder(tmp_path / "saved", method="nf4"), 8)
    assert problem.field == "model.weights" and "quantization=stored" in problem.fix
    (problem,) = check_model(from_folder(bases["llama"], method="stored"), 8)
    assert problem.field == "model.quantization.method" and "quantization=nf4" in problem.fix
    assert check_model(from_folder(tmp_path / "saved", method="stored"), 8) == []
    trained = AdapterConfig(rank=2, targets=["q_proj"], modules_to_save=["up_proj"])
    (problem,) = check_model(from_folder(tmp_path / "saved", adapter=trained, method="stored"), 8)
    assert "up_proj" in problem.why and "modules_to_save" in problem.fix


def test_parts_can_be_asked_for_one_by_one() -> None:
    """Ranks of a plan ask for the parts that they hold."""
    config = quantised("llama", method="nf4")
    model = on_meta(config)
    source = weight_source(config, model, 0)
    names = [name for name, one in model.named_parameters() if not one.is_floating_point()]
    together = dict(source(set(names)))
    assert together.keys() == set(names)
    for name in names[:3]:
        ((own, tensor),) = source({name})
        assert own == name and torch.equal(tensor, together[name])
