"""Tests of ``model.weights=FOLDER``: which tensors and files are loaded, which ones are only named in a warning, and
which weights or config.json are refused.

``check_model`` refuses what it can recognise by names, dtypes and configuration, before any tensor is read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from trireme.errors import Problem, UserError
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_model import check_model
from trireme.models.model_config import ModelConfig, hf_config

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
}
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Weights of a small Llama."""
    AutoModelForCausalLM.from_config(hf_config(ModelConfig("llama", dict(SMALL)))).save_pretrained(tmp_path)
    return tmp_path


def _tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _store(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> None:
    save_file(tensors, folder / name, metadata={"format": "pt"})


def _configure(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _told(folder: Path, caplog: pytest.LogCaptureFixture, **options: object) -> str:
    """The log messages about weights, which must be accepted."""
    config = ModelConfig(weights=str(folder), **options)
    assert check_model(config, 16) == []
    caplog.clear()
    with caplog.at_level(logging.WARNING, "trireme.models"):
        weight_source(config, build_on_meta(config, "causal_lm", Vocabulary(64)), 0)
    return caplog.text


def _refused(folder: Path, *words: str, **options: object) -> Problem:
    """Assert that ``check_model`` finds one problem, with all ``words`` in it; returns the problem."""
    config = ModelConfig(**{"family": "llama", "weights": str(folder), **options})
    (problem,) = check_model(config, 16)
    for word in (*words,):
        assert word in str(problem), problem
    assert problem.fix
    return problem


def test_sound_weights_say_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert _told(folder, caplog) == ""


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["score.weight"], "score.weight (a classifier head)"),
        (["v_head.summary.weight", "v_head.summary.bias"], "a value head"),
        ([f"model.layers.{n}.self_attn.q_proj.bias" for n in range(2)], "q_proj.bias (2 tensors)"),
        (["model.layers.7.mlp.up_proj.weight"], "blocks beyond the model's 2"),
        (["vision_tower.patch.weight"], "a vision tower"),
        (["something.of.mine"], "something.of.mine"),
    ],
)
def test_tensors_without_a_place_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture, extra: list[str], told: str
) -> None:
    _store(folder, {**_tensors(folder), **{name: torch.ones(2) for name in extra}})
    said = _told(folder, caplog)
    assert told in said and f"{len(extra)} tensor" in said


def test_stored_buffers_that_the_model_computes_are_not_mentioned(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"model.rotary_emb.inv_freq": torch.ones(4), f"{Q[:-7]}.rotary_emb.inv_freq": torch.ones(4)}
    _store(folder, {**_tensors(folder), **extra})
    assert _told(folder, caplog) == ""


@pytest.mark.parametrize(
    "name",
    ["weight_scale_inv", "weight_scale", "input_scale", "scales", "qzeros", "absmax", "SCB", "weight_zero_point"],
)
def test_scales_are_refused(folder: Path, name: str) -> None:
    _store(folder, {**_tensors(folder), f"{Q}.{name}": torch.ones(1)})
    _refused(folder, "quantised", f"{Q}.{name}", "dequantize")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32])
def test_types_that_hold_no_plain_weights_are_refused(folder: Path, dtype: torch.dtype) -> None:
    tensors = _tensors(folder)
    _store(folder, {**tensors, f"{Q}.weight": tensors[f"{Q}.weight"].to(dtype)})
    _refused(folder, "quantised", f"{Q}.weight")


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantised_folder_is_one_message(folder: Path, method: str) -> None:
    tensors = _tensors(folder)
    packed = {f"{Q}.qweight": torch.ones(4, 4, dtype=torch.int32), f"{Q}.scales": torch.ones(4)}
    del tensors[f"{Q}.weight"]
    _store(folder, {**tensors, **packed})
    _configure(folder, quantization_config={"quant_method": method})
    _refused(folder, method, "quantised", "dequantize")


def test_a_quantization_config_beside_plain_tensors_says_what_to_do(folder: Path) -> None:
    _configure(folder, quantization_config={"quant_method": "fp8"})
    _refused(folder, "plain numbers", "take quantization_config out of")


def test_older_quantisers_left_a_file(folder: Path) -> None:
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    _refused(folder, "quantize_config.json")


def test_adapters_are_refused(folder: Path) -> None:
    _store(folder, {**_tensors(folder), f"{Q}.lora_A.weight": torch.ones(4, 4)})
    _refused(folder, "adapter", "merge_and_unload")


def test_a_head_that_differs_from_the_embedding_it_is_tied_to(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _configure(folder, tie_word_embeddings=True)
    _refused(folder, "tie_word_embeddings", "differs from the embedding", "=false")
    tensors = _tensors(folder)
    _store(folder, {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert _told(folder, caplog) == ""
    del tensors["model.embed_tokens.weight"]
    _store(folder, tensors)
    assert _told(folder, caplog) == ""  # stored under the other name


def test_a_file_without_its_head_is_refused(folder: Path) -> None:
    tensors = _tensors(folder)
    del tensors["lm_head.weight"]
    _store(folder, tensors)
    _refused(folder, "lacks 1 tensor of the model: lm_head.weight", "tie_word_embeddings=true")


def test_marks_of_wrappers_are_no_part_of_a_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = _tensors(folder)
    for mark in ("_orig_mod.", "module."):
        _store(folder, {f"{mark}{name}": tensor for name, tensor in tensors.items()})
        assert _told(folder, caplog) == ""


def test_other_files_with_weights_are_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"):
        _store(folder, {"a": torch.ones(1)}, name)
    torch.save({"a": torch.ones(1)}, folder / "pytorch_model.bin")
    said = _told(folder, caplog)
    assert "weights are read from model.safetensors; not read: adapter_model.safetensors, consolidated" in said


def _two_variants(folder: Path) -> None:
    _store(folder, _tensors(folder), "model.bf16.safetensors")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def _two_standards(folder: Path) -> None:
    _store(folder, _tensors(folder), "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(_tensors(folder), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def _index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')


def _only_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


def _only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-q4.gguf")


def _nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_two_variants, ["2 sets of weights", "model.bf16.safetensors, model.fp16.safetensors", "model.weights="]),
        (_two_standards, ["2 sets of weights", "model.safetensors.index.json"]),
        (_missing_shard, ["lacks model-00002-of-00002.safetensors"]),
        (_index_of_nothing, ["cannot be found"]),
        (_only_an_adapter, ["adapter only", "model.adapter.path"]),
        (_only_gguf, ["GGUF", "model-q4.gguf"]),
        (_nothing, ["no *.safetensors"]),
        (_cut_off, ["cannot be read"]),
    ],
)
def test_folders_that_hold_no_one_set_of_weights(folder: Path, spoil: Callable[[Path], None], words: list[str]) -> None:
    spoil(folder)
    assert _refused(folder, *words).field == "model.weights"


def test_shards_without_an_index_and_an_index_by_name(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _two_standards(folder)
    assert "not read: model.safetensors" not in _told(folder / "model.safetensors", caplog)
    assert _told(folder / "model.safetensors.index.json", caplog) == ""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    assert _told(folder, caplog) == ""


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    tensors = _tensors(folder)
    (folder / "model.safetensors").unlink()
    _store(folder, tensors, "model-00001-of-00002.safetensors")
    _store(folder, {f"{Q}.weight": tensors[f"{Q}.weight"] + 1}, "model-00002-of-00002.safetensors")
    _refused(folder, "is stored in both")


def test_the_family_follows_from_the_weights(folder: Path) -> None:
    assert ModelConfig(weights=str(folder)).family == "llama"
    assert ModelConfig(weights=str(folder / "model.safetensors")).family == "llama"
    problem = _refused(folder, "are of the family llama", "model.family=llama, or leave it out", family="gpt2")
    other = {"family": "auto", "architecture": "transformers.GPT2LMHeadModel"}
    words = ("a class for models of the type gpt2, and the weights in", "are of the type llama")
    assert _refused(folder, *words, **other).field == "model.architecture"
    assert problem.field == "model.family"


def test_an_unsupported_type_is_said_at_once(folder: Path) -> None:
    _configure(folder, model_type="qwen99")
    _refused(folder, "holds a model of type 'qwen99', which is not supported", "gpt_neox, gptj, llama")
    with pytest.raises(ValueError, match=r"weights=.*'qwen99', which is not supported"):
        ModelConfig(weights=str(folder))
    with pytest.raises(ValueError, match=r"family is required.*choose one of"):
        ModelConfig()


def test_a_config_that_cannot_be_read(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    _refused(folder, "config.json that cannot be read")
    (folder / "config.json").write_text("[]")
    _refused(folder, "not a JSON object")
    (folder / "config.json").unlink()
    _refused(folder, "has no config.json")


@pytest.mark.parametrize("family", ["gpt2", "gptj", "codegen", "gpt_neox"])
def test_masks_of_older_files_need_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture, family: str) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    small |= {"rotary_dim": 4} if family in ("gptj", "codegen") else {}
    AutoModelForCausalLM.from_config(hf_config(ModelConfig(family, small))).save_pretrained(tmp_path)
    block = "gpt_neox.layers.0.attention" if family == "gpt_neox" else "transformer.h.0.attn"
    masks = {f"{block}.{name}": torch.ones(1, 1, 4, 4) for name in ("bias", "masked_bias")}
    _store(tmp_path, {**_tensors(tmp_path), **masks})
    assert _told(tmp_path, caplog) == ""


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "big"},
        {"vocab_size": None},
        {"num_hidden_layers": None},
        {"num_attention_heads": [4]},
        {"max_position_embeddings": "long"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": "half"}},
        {"rope_scaling": "yes"},
        {"hidden_act": "gleu"},
        {"model_type": ["llama"]},
        {"tie_word_embeddings": "maybe", "hidden_act": 3},
    ],
)
@pytest.mark.parametrize("pickled", [False, True])
def test_fields_of_a_config_that_make_no_sense(folder: Path, values: dict[str, object], pickled: bool) -> None:
    if pickled:
        torch.save(_tensors(folder), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    _configure(folder, **values)
    problems = check_model(ModelConfig(family="llama", weights=str(folder)), 16)
    assert problems and all(each.field.startswith("model.") and each.fix for each in problems)


def test_a_config_without_model_type_is_told_so(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values["model_type"]
    (folder / "config.json").write_text(json.dumps(values))
    assert "config.json that has no model_type" in _refused(folder).why
    with pytest.raises(ValueError, match=r"config\.json that has no model_type; .*llama"):
        ModelConfig(weights=str(folder))


def test_an_unreadable_weight_is_refused_by_the_run_too(folder: Path) -> None:
    _store(folder, {**_tensors(folder), f"{Q}.weight_scale_inv": torch.ones(1)})
    config = ModelConfig(weights=str(folder))
    with pytest.raises(UserError, match="quantised"):
        weight_source(config, build_on_meta(config, "causal_lm", Vocabulary(64)), 0)


def test_notes_on_weights_are_logged_by_one_rank(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _store(folder, {**_tensors(folder), "v_head.weight": torch.ones(2)})
    config = ModelConfig(weights=str(folder))
    with caplog.at_level(logging.WARNING, "trireme.models"):
        for rank in range(3):
            weight_source(config, build_on_meta(config, "causal_lm", Vocabulary(64)), 0, speaks=rank == 0)
    assert caplog.text.count("v_head.weight") == 1


def test_rows_that_begin_at_random_are_not_frozen(folder: Path) -> None:
    """New tokens would keep random embeddings, silently."""
    config = ModelConfig(weights=str(folder), resize_embeddings=True, frozen=["*embed_tokens*"])
    with pytest.raises(UserError, match="freezes parameters that begin at random") as caught:
        weight_source(config, build_on_meta(config, "causal_lm", Vocabulary(70)), 0)
    (problem,) = caught.value.problems
    assert isinstance(problem, Problem) and problem.field == "model.frozen" and "embed_tokens" in problem.why
    trained = ModelConfig(weights=str(folder), resize_embeddings=True)
    weight_source(trained, build_on_meta(trained, "causal_lm", Vocabulary(70)), 0)
