"""Tests that adapters saved by peft are loaded, or merged into their base model, with the same outputs as in peft;
adapters that trireme cannot represent, or that do not fit the model or the recipe, are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapted import SIZES, config_of, filled, logits, on_meta, shaken
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.adapter_config import AdapterConfig, MergedAdapter
from trireme.models.model_config import ModelConfig
from trireme.models.peft_folder import peft_name, plain_name

peft = pytest.importorskip("peft")

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"]}),
    "rslora": ("llama", {"r": 4, "use_rslora": True, "target_modules": "all-linear", "init_lora_weights": "gaussian"}),
    "dora": ("llama", {"r": 2, "use_dora": True, "target_modules": "all-linear"}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "conv1d": ("gpt2", {"r": 4, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "conv1d_dora": ("gpt2", {"r": 4, "use_dora": True, "target_modules": ["c_fc"], "fan_in_fan_out": True}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    for family in SIZES:
        filled(config_of(family)).save_pretrained(folder / family)
    return {family: folder / family for family in SIZES}


def _of_peft(base: Path, out: Path, **arguments: Any) -> torch.Tensor:
    """Save an adapter as peft does; returns the logits of its model."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **arguments))
    shaken(adapted)
    adapted.save_pretrained(out)
    return logits(adapted.eval())


@pytest.mark.parametrize("kind", KINDS)
def test_what_peft_saved_is_taken_over(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    family, arguments = KINDS[kind]
    wanted = _of_peft(bases[family], tmp_path / "adapter", **arguments)
    config = ModelConfig(weights=str(bases[family]), adapter=AdapterConfig(path=str(tmp_path / "adapter")))
    torch.testing.assert_close(logits(filled(config)), wanted, rtol=1e-5, atol=1e-6)
    merged = ModelConfig(weights=str(bases[family]), merged_adapters={"one": MergedAdapter(str(tmp_path / "adapter"))})
    torch.testing.assert_close(logits(filled(merged)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patterns_name_layers_as_the_folder_does(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    """An adapter of a bare backbone has names without the prefix of a model with a head, and its patterns too."""
    layer, target = {"llama": ("layers.0.self_attn.q_proj", "q_proj"), "gpt2": ("h.1.attn.c_attn", "c_attn")}[family]
    patterns = {"alpha_pattern": {f"^{layer}": 64, "nosuch": 3}, "rank_pattern": {f"^{layer}": 3}}
    backbone = AutoModel.from_pretrained(bases[family], dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 4, "target_modules": [target], "fan_in_fan_out": family == "gpt2"}
    adapted = peft.get_peft_model(backbone, peft.LoraConfig(**options, **patterns))
    shaken(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        hidden = adapted.eval()(input_ids=torch.arange(24).reshape(2, 12)).last_hidden_state
        head = AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32).lm_head
        wanted = head(hidden)
    beside = {"adapter": AdapterConfig(path=str(tmp_path / "adapter"))}
    merged = {"merged_adapters": {"one": MergedAdapter(str(tmp_path / "adapter"))}}
    for more in (beside, merged):
        found = logits(filled(ModelConfig(weights=str(bases[family]), **more)))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_several_are_merged_by_their_weights(bases: dict[str, Path], tmp_path: Path) -> None:
    for number, name in enumerate(("style", "facts")):
        _of_peft(bases["llama"], tmp_path / name, r=2 + number, target_modules=["q_proj", "up_proj"])
    model = AutoModelForCausalLM.from_pretrained(bases["llama"], dtype=torch.float32)
    both = peft.PeftModel.from_pretrained(model, tmp_path / "style", adapter_name="style")
    both.load_adapter(tmp_path / "facts", adapter_name="facts")
    both.add_weighted_adapter(["style", "facts"], [1.0, 0.5], "both", combination_type="cat")
    both.set_adapter("both")
    config = ModelConfig(
        weights=str(bases["llama"]),
        merged_adapters={
            "style": MergedAdapter(str(tmp_path / "style")),
            "facts": MergedAdapter(str(tmp_path / "facts"), weight=0.5),
        },
        adapter=AdapterConfig(targets=["v_proj"]),
    )
    torch.testing.assert_close(logits(filled(config)), logits(both.eval()), rtol=1e-4, atol=1e-5)


def test_names_go_both_ways() -> None:
    for name in ("model.layers.0.q_proj.lora_A", "h.0.c_attn.lora_B", "x.lora_magnitude_vector", "lm_head.weight"):
        assert plain_name(peft_name(name)) == name
    assert peft_name("a.lora_A") == "base_model.model.a.lora_A.weight"
    assert peft_name("a.lora_magnitude_vector") == "base_model.model.a.lora_magnitude_vector"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "IA3"}, ("IA3", "only LORA")),
        ({"bias": "all"}, ("biases", "merge it with peft")),
        ({"lora_bias": True}, ("lora_bias",)),
        ({"layer_replication": [[0, 2]]}, ("layer_replication",)),
        ({"init_lora_weights": "pissa"}, ("pissa", "changes the base")),
    ],
)
def test_what_is_not_plain_lora_is_refused(
    change: dict[str, Any], words: tuple[str, ...], bases: dict[str, Path], tmp_path: Path
) -> None:
    _of_peft(bases["llama"], tmp_path / "adapter", target_modules=["q_proj"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    _refused(bases["llama"], tmp_path / "adapter", *words)


def test_what_does_not_fit_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    _of_peft(bases["llama"], folder, r=4, target_modules=["q_proj"])
    _refused(bases["gpt2"], folder, "has no place in GPT2LMHeadModel")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, folder / "adapter_model.safetensors")
    _refused(bases["llama"], folder, "the layer needs (32, 4)")
    save_file({n: t for n, t in tensors.items() if n != name}, folder / "adapter_model.safetensors")
    _refused(
        bases["llama"],
        folder,
        "lacks ",
        "but the layer needs (32, 4)",
    )
    (folder / "adapter_model.safetensors").unlink()
    _refused(bases["llama"], folder, "holds no adapter_model.safetensors")


def test_keys_that_contradict_the_folder_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    _of_peft(bases["llama"], tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["q_proj"])
    for more, words in (
        ({"rank": 8}, ("model.adapter.rank", "where it is 4")),
        ({"dora": True}, ("model.adapter.dora", "where it is False")),
        ({"targets": ["q_proj"]}, ("model.adapter.targets", "already fixes its layers")),
    ):
        _refused(bases["llama"], tmp_path / "adapter", *words, **more)
    config = ModelConfig(weights=str(bases["llama"]), adapter=AdapterConfig(path=str(tmp_path / "adapter"), rank=4))
    assert on_meta(config)


def test_an_embedding_trained_apart_from_its_head_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """GPT-2 has one parameter for both; peft would train a copy of one of them."""
    _of_peft(bases["gpt2"], tmp_path / "adapter", target_modules=["c_attn"], modules_to_save=["wte"])
    _refused(bases["gpt2"], tmp_path / "adapter", "separate transformer.wte.weight and lm_head.weight")


def test_dora_adapters_that_cannot_be_merged_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    from trireme.models.build_model import weight_source

    _of_peft(bases["llama"], tmp_path / "adapter", use_dora=True, target_modules=["q_proj"])
    for merged, word in (
        ({"one": MergedAdapter(str(tmp_path / "adapter"), weight=0.5)}, "cannot be scaled"),
        ({name: MergedAdapter(str(tmp_path / "adapter")) for name in ("one", "two")}, "changed"),
    ):
        config = ModelConfig(weights=str(bases["llama"]), merged_adapters=merged)
        with pytest.raises(UserError, match=word):
            weight_source(config, on_meta(config), 0)


def _refused(base: Path, folder: Path, *words: str, **more: Any) -> None:
    with pytest.raises(UserError) as refusal:
        on_meta(ModelConfig(weights=str(base), adapter=AdapterConfig(path=str(folder), **more)))
    for word in words:
        assert word in str(refusal.value), refusal.value
