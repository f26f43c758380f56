"""Perceiver AR equals a plain reference implementation, generates texts, and loads published weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.naive_perceiver import naive_logits
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_model import check_model
from trireme.models.model_config import ModelConfig
from trireme.models.perceiver_ar import PerceiverARConfig, PerceiverARForCausalLM
from trireme.models.perceiver_ar.perceiver_published import name as published_name

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "max_latents": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "absolute": {"absolute_positions": True, "partial_rotary_factor": 0.5, "final_norm": False, "head_bias": True},
    "all_rotary": {"rotary_layers": None, "hybrid_bias": False, "hybrid_intermediate_size": 64},
}
WITHIN = {"rtol": 1e-5, "atol": 1e-5}


def model_of(variant: str = "published", attention: str = "sdpa", **fields: Any) -> PerceiverARForCausalLM:
    """A small model whose norms differ from one and biases from zero."""
    torch.manual_seed(0)
    config = PerceiverARConfig(**{**SMALL, **VARIANTS[variant], "initializer_range": 0.15, **fields})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.2)
    return model


def texts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 96, (length,), generator=generator).tolist() for length in lengths]


def padded(rows: list[list[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and mask, padded on the left."""
    most = max(map(len, rows))
    ids = torch.tensor([[fill] * (most - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (most - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_the_written_out_model(variant: str, attention: str) -> None:
    model = model_of(variant, attention)
    rows = texts(20, 13, 5)  # the last one has fewer tokens than there are latents
    ids, mask = padded(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits
    assert logits.shape == (3, 8, 96)
    weights = {name: one.detach().clone().requires_grad_() for name, one in model.named_parameters()}
    loss, wanted_loss = torch.zeros(()), torch.zeros(())
    for number, row in enumerate(rows):
        wanted = naive_logits(weights, model.config, row, 8)
        torch.testing.assert_close(logits[number, -len(wanted) :], wanted, **WITHIN)
        loss = loss + logits[number, -len(wanted) :].square().mean()
        wanted_loss = wanted_loss + wanted.square().mean()
    loss.backward()
    wanted_loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and weights[name].grad is not None, name
        torch.testing.assert_close(
            parameter.grad, weights[name].grad, **WITHIN, msg=lambda told, of=name: f"{of}: {told}"
        )


def test_tokens_that_a_prefix_lacks_leave_their_places() -> None:
    model, (row,) = model_of("absolute"), texts(20)
    kept = [*(0, 3, 4, 9), *range(12, 20)]
    tokens = torch.tensor([[row[place] for place in kept]])
    with torch.no_grad():
        logits = model(input_ids=tokens, position_ids=torch.tensor([kept])).logits[0]
    wanted = naive_logits(dict(model.named_parameters()), model.config, tokens[0].tolist(), 8, kept)
    torch.testing.assert_close(logits, wanted, **WITHIN)


def test_any_number_of_latents_and_a_loss_of_transformers_kind() -> None:
    model, (row,) = model_of(), texts(20)
    ids = torch.tensor([row])
    for latents in (1, 3, 8):
        with torch.no_grad():
            logits = model(input_ids=ids, num_latents=latents).logits[0]
        torch.testing.assert_close(
            logits, naive_logits(dict(model.named_parameters()), model.config, row, latents), **WITHIN
        )
    given = model(input_ids=ids, labels=ids)
    wanted = torch.nn.functional.cross_entropy(given.logits[0, :-1], ids[0, -7:])
    torch.testing.assert_close(given.loss, wanted)


# -- texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_tokens_have_the_logits_of_a_forward_pass(variant: str) -> None:
    model, rows = model_of(variant), texts(14, 9)
    ids, mask = padded(rows)
    options: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0, "num_latents": 3}
    found = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **options)
    assert found.sequences.shape == (2, 54) and model.config.max_position_embeddings < 54
    weights = {name: one.detach() for name, one in model.named_parameters()}
    for number, row in enumerate(rows):
        latents, text = 3, list(row)
        for step, logits in enumerate(found.logits):
            # Eight latents are the most: then the older half of them becomes part of the prefix, of at most 24 tokens.
            wanted = naive_logits(weights, model.config, text[-24 - latents :], latents)[-1]
            torch.testing.assert_close(logits[number], wanted, **WITHIN)
            text.append(int(found.sequences[number, ids.shape[1] + step]))
            latents = latents + 1 if latents < 8 else 4


def test_a_cache_changes_nothing() -> None:
    model, rows = model_of("absolute"), texts(14, 9)
    ids, mask = padded(rows)
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 30, "pad_token_id": 0}
    for search in ({"do_sample": False}, {"num_beams": 3}):
        with_cache, without = (model.generate(ids, use_cache=use, **search, **options) for use in (True, False))
        assert torch.equal(with_cache, without)
    alone = model.generate(torch.tensor([rows[1]]), max_new_tokens=30, pad_token_id=0, do_sample=False)
    assert torch.equal(alone[0], model.generate(ids, do_sample=False, **options)[1, 5:])


@pytest.mark.parametrize(
    ("latents", "words"), [(0, "from 1 to max_latents, which is 8"), (9, "is 8"), (3, "from 6 to 8")]
)
def test_numbers_of_latents_that_are_refused(latents: int, words: str) -> None:
    ids = torch.tensor(texts(30))
    with pytest.raises(ValueError, match=words):
        model_of().generate(ids, num_latents=latents, max_new_tokens=1)


def test_a_prompt_beyond_the_trained_length_is_read_from_its_end() -> None:
    model, (row,) = model_of(), texts(50)
    found = model.generate(torch.tensor([row]), max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    wanted = naive_logits(dict(model.named_parameters()), model.config, row[-32:], 8)[-1]
    torch.testing.assert_close(found.logits[0][0], wanted, **WITHIN)


def test_auto_classes_load_what_was_saved(tmp_path: Path) -> None:
    model = model_of("absolute")
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), PerceiverARConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.lm_head.weight is again.model.embed_tokens.weight
    ids = torch.tensor(texts(20))
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


# -- checks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_latents": 33}, "max_latents=33 must be at least 1 and at most max_position_embeddings"),
        ({"partial_rotary_factor": 0.4}, "rotates 3 features of a head"),
        ({"num_attention_heads": 5}, "5"),
        ({"max_latent": 4}, "unknown key of PerceiverARConfig"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], words: str) -> None:
    problems = check_model(ModelConfig("perceiver_ar", {**SMALL, **fields}), 16)
    assert problems and any(words in f"{problem.field} {problem.why} {problem.fix}" for problem in problems), problems


def test_heads_that_it_lacks_are_refused() -> None:
    (problem,) = check_model(ModelConfig("perceiver_ar", SMALL), 16, "masked_lm")
    assert problem.why == "asks for the head masked_lm, which trireme does not have for Perceiver AR"
    assert problem.fix.endswith("causal_lm")


# -- the library that published it -------------------------------------------------------------------------------

LAYER = {
    "attention.q_proj.weight": "0.module.attention.q_proj.weight",
    "attention.k_proj.weight": "0.module.attention.k_proj.weight",
    "attention.v_proj.weight": "0.module.attention.v_proj.weight",
    "attention.o_proj.weight": "0.module.attention.o_proj.weight",
    "attention.o_proj.bias": "0.module.attention.o_proj.bias",
    "mlp_norm.weight": "1.module.0.weight",
    "mlp_norm.bias": "1.module.0.bias",
    "mlp.up_proj.weight": "1.module.1.weight",
    "mlp.down_proj.weight": "1.module.3.weight",
}
PUBLISHED = {
    "model.embed_tokens.weight": "input_adapter.txt_embedding.weight",
    "model.embed_positions.weight": "input_adapter.pos_embedding.weight",
    "model.norm.weight": "out_norm.weight",
    "model.norm.bias": "out_norm.bias",
    "lm_head.bias": "output_adapter.bias",
    **{
        f"model.layers.0.{ours}.{leaf}": f"cross_attention.0.module.{theirs}.{leaf}"
        for ours, theirs in (("attention_norm", "q_norm"), ("prefix_norm", "kv_norm"))
        for leaf in ("weight", "bias")
    },
    **{f"model.layers.0.{ours}": f"cross_attention.{theirs}" for ours, theirs in LAYER.items()},
    **{
        f"model.layers.{number + 1}.attention_norm.{leaf}": f"self_attention.{number}.0.module.norm.{leaf}"
        for number in range(2)
        for leaf in ("weight", "bias")
    },
    **{
        f"model.layers.{number + 1}.{ours}": f"self_attention.{number}.{theirs}"
        for number in range(2)
        for ours, theirs in LAYER.items()
    },
}
"""trireme's name of a tensor -> the library's name, for three layers; a model has some of these tensors."""


def fields_of(config: PerceiverARConfig) -> dict[str, Any]:
    """The configuration under the library's names of fields."""
    return {
        "vocab_size": config.vocab_size,
        "max_seq_len": config.max_position_embeddings,
        "max_latents": config.max_latents,
        "num_channels": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_self_attention_layers": config.num_hidden_layers - 1,
        "num_self_attention_rotary_layers": -1 if config.rotary_layers is None else config.rotary_layers - 1,
        "self_attention_widening_factor": 2,
        "cross_attention_widening_factor": 3,
        "cross_attention_dropout": 0.5,
        "output_norm": config.final_norm,
        "output_bias": config.head_bias,
        "abs_pos_emb": config.absolute_positions,
    }


def taken_over(weights: Path) -> PerceiverARForCausalLM:
    config = ModelConfig(weights=str(weights))
    model: Any = build_on_meta(config, "causal_lm", Vocabulary(96))
    names = [name for name, _ in model.named_parameters()]
    values = dict(weight_source(config, model, 0)(names))
    model.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    return model.eval()


@pytest.mark.parametrize("kind", ["lightning", "folder"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_published_weights_are_taken_over(variant: str, kind: str, tmp_path: Path) -> None:
    sizes = {"intermediate_size": 64, "hybrid_intermediate_size": 96, "hybrid_bias": True}
    model = model_of(variant, **sizes)
    fields, prefix = fields_of(model.config), "model." if kind == "lightning" else "backend_model."
    tensors = {f"{prefix}{PUBLISHED[name]}": one.detach() for name, one in model.named_parameters()}
    tensors[f"{prefix}input_adapter.frq_pos_encoding.inv_freq"] = torch.ones(2)
    if kind == "lightning":
        path = tmp_path / "epoch=000-val_loss=2.820.ckpt"
        torch.save({"state_dict": tensors, "hyper_parameters": {**fields, "params": None}, "epoch": 0}, path)
    else:
        path = tmp_path
        values = {"model_type": "perceiver-ar-causal-language-model", "model_config": fields, "is_decoder": True}
        (tmp_path / "config.json").write_text(json.dumps(values))
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert check_model(ModelConfig(weights=str(path)), 16) == []
    again, ids = taken_over(path), torch.tensor(texts(20))
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_every_published_name_is_known() -> None:
    assert {ours: published_name(f"model.{theirs}") for ours, theirs in PUBLISHED.items()} == {
        ours: ours for ours in PUBLISHED
    }
    assert published_name("model.layers.0.attention.q_proj.weight") == "model.layers.0.attention.q_proj.weight"


class Harmful:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": {"num_channels": Harmful()}}, "bad.ckpt", pickle_module=pickle)
    with pytest.raises(ValueError, match=r"weights='bad.ckpt' cannot be used: asks for .*pathlib.*no code was run"):
        ModelConfig(weights="bad.ckpt")
    assert not (tmp_path / "harmed").exists()
    torch.save({"state_dict": {}, "hyper_parameters": {"lr": 0.1}}, "other.ckpt")
    with pytest.raises(ValueError, match=r"hyperparameters \(lr\) are not known; give one of Perceiver AR"):
        ModelConfig(weights="other.ckpt")
    with pytest.raises(UserError):
        build_on_meta(ModelConfig("perceiver_ar", SMALL), "masked_lm", Vocabulary(96))
