"""Tests of Transformer-XL: equality with a plain reference implementation, memory, padding, the adaptive softmax,
generation, classification, saved and published weights, and refused configurations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.naive_transformer_xl import NaiveTransformerXL
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.check_model import check_model
from trireme.models.family import families
from trireme.models.head_loss import Asked, head_loss
from trireme.models.loss import IGNORE, most_likely, token_loss
from trireme.models.model_config import ModelConfig
from trireme.models.transformer_xl import TransfoXLConfig, TransfoXLLMHeadModel

SMALL: dict[str, Any] = {
    "vocab_size": 60,
    "cutoffs": [12, 30],
    "d_model": 16,
    "d_embed": 16,
    "n_head": 2,
    "d_head": 6,
    "d_inner": 24,
    "div_val": 2,
    "n_layer": 2,
    "mem_len": 8,
    "clamp_len": 0,
    "same_length": False,
    "dropout": 0.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {"same_length": True, "clamp_len": 5},
    "plain": {},
    "one_width": {"div_val": 1, "untie_r": False},
    "projected": {"div_val": 1, "d_embed": 12, "proj_share_all_but_first": False},
    "before": {"pre_lnorm": True, "tie_word_embeddings": False, "init": "uniform", "init_range": 0.3},
    "one_cluster": {"cutoffs": [], "div_val": 1},
}
WITHIN = {"rtol": 1e-5, "atol": 1e-5}


def model_of(variant: str = "plain", **fields: Any) -> TransfoXLLMHeadModel:
    """A small model whose biases differ from zero."""
    torch.manual_seed(0)
    options = {**SMALL, "init_std": 0.2, "proj_init_std": 0.3, **VARIANTS[variant], **fields}
    model = AutoModelForCausalLM.from_config(TransfoXLConfig(**options)).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, float(parameter.detach().mean()), 0.2)
    return model


def texts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 60, (length,), generator=generator).tolist() for length in lengths]


def weights_of(model: TransfoXLLMHeadModel, leaves: dict[int, Tensor] | None = None) -> dict[str, Tensor]:
    """Parameters under all of their names; tied parameters are one tensor."""
    leaves = {} if leaves is None else leaves
    named = model.named_parameters(remove_duplicate=False)
    return {name: leaves.setdefault(id(one), one.detach().clone().requires_grad_()) for name, one in named}


@pytest.mark.parametrize("variant", VARIANTS)
def test_segments_and_gradients_are_those_of_the_written_out_model(variant: str) -> None:
    model, (row,) = model_of(variant), texts(17)
    leaves: dict[int, Tensor] = {}
    naive = NaiveTransformerXL(weights_of(model, leaves), model.config)
    mems = lengths = None
    loss, wanted_loss = torch.zeros(()), torch.zeros(())
    for first, last in ((0, 6), (6, 11), (11, 17)):  # the memory of 8 is half full, then full
        ids = torch.tensor([row[first:last]])
        found = model(input_ids=ids, mems=mems, mem_lengths=lengths, use_cache=True)
        wanted = naive.log_probabilities(row[first:last])
        torch.testing.assert_close(found.logits[0], wanted, **WITHIN)
        mems, lengths = found.mems, found.mem_lengths
        loss, wanted_loss = loss + found.logits.square().mean(), wanted_loss + wanted.square().mean()
    loss.backward()
    wanted_loss.backward()
    for name, parameter in model.named_parameters():
        wanted_gradient = leaves[id(parameter)].grad
        assert parameter.grad is not None and wanted_gradient is not None, name
        torch.testing.assert_close(
            parameter.grad, wanted_gradient, rtol=1e-4, atol=1e-5, msg=lambda told, of=name: f"{of}: {told}"
        )


def test_a_memory_that_reaches_back_gives_what_one_long_segment_gives() -> None:
    model, rows = model_of(mem_len=12), torch.tensor(texts(20, 20))
    with torch.no_grad():
        at_once = model(input_ids=rows).logits
        first = model(input_ids=rows[:, :12], use_cache=True)
        second = model(input_ids=rows[:, 12:], mems=first.mems, mem_lengths=first.mem_lengths)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), at_once, **WITHIN)
    assert second.mem_lengths.tolist() == [12, 12] and second.mems.shape == (2, 2, 12, 16)


def test_rows_with_memories_of_several_lengths_are_read_as_each_alone() -> None:
    model, (long, short) = model_of(), texts(7, 7)
    with torch.no_grad():
        known = model(input_ids=torch.tensor([long]), use_cache=True)
        mems = torch.cat([known.mems, torch.full_like(known.mems, 9.0)])
        both = model(input_ids=torch.tensor([short, short]), mems=mems, mem_lengths=torch.tensor([7, 0]))
        alone = model(input_ids=torch.tensor([short]), mems=known.mems, mem_lengths=known.mem_lengths)
        begun = model(input_ids=torch.tensor([short]))
    torch.testing.assert_close(both.logits, torch.cat([alone.logits, begun.logits]), **WITHIN)
    assert both.mem_lengths.tolist() == [8, 7]


def test_padding_is_neither_seen_nor_remembered() -> None:
    model, (row, more) = model_of(), texts(5, 4)
    ids = torch.tensor([[0, 0, *row]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, use_cache=True)
        alone = model(input_ids=torch.tensor([row]), use_cache=True)
        torch.testing.assert_close(padded.logits[:, 2:], alone.logits, **WITHIN)
        after = [
            model(input_ids=torch.tensor([more]), mems=one.mems, mem_lengths=one.mem_lengths).logits
            for one in (padded, alone)
        ]
    torch.testing.assert_close(*after, **WITHIN)


# -- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_of_the_head_are_those_of_all_log_probabilities(variant: str) -> None:
    model, rows = model_of(variant), torch.tensor(texts(15, 15))
    labels = rows.roll(-1, 1)
    labels[:, -1], labels[0, :4] = IGNORE, IGNORE
    with torch.no_grad():
        logits = model(input_ids=rows).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 15), **WITHIN)
    loss = head_loss("auto", model, families()["transformer_xl"], lambda *_: None, torch.device("cpu"))
    assert loss is not None
    loss.attach(model, families()["transformer_xl"])
    for weights in (None, torch.linspace(0.5, 2, 30).view(2, 15)):
        with loss.running(Asked(labels, weights, likeliest=True)):
            found = model(input_ids=rows).logits
        wanted = token_loss(logits, labels, weights=weights)
        torch.testing.assert_close(token_loss(found, labels, weights=weights), wanted, **WITHIN)
        counted = labels != IGNORE
        assert torch.equal(most_likely(found)[counted], logits.argmax(-1)[counted])
    with loss.running(Asked(labels, smoothing=0.1)):  # smoothing needs the logits of all words
        assert model(input_ids=rows).logits.shape == logits.shape


def test_every_weight_gets_a_gradient_whatever_the_words_are() -> None:
    model = model_of()
    rows = torch.ones(1, 6, dtype=torch.int64)  # of the first cluster alone
    spec = families()["transformer_xl"]
    loss = head_loss("auto", model, spec, lambda *_: None, torch.device("cpu"))
    assert loss is not None
    loss.attach(model, spec)
    with loss.running(Asked(rows)):
        token_loss(model(input_ids=rows).logits, rows).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# -- texts -------------------------------------------------------------------------------------------------------


def test_written_tokens_have_the_scores_of_the_text_read_in_segments() -> None:
    model, (row,) = model_of("published"), texts(9)
    found = model.generate(
        torch.tensor([row]), max_new_tokens=14, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    naive, text = NaiveTransformerXL(weights_of(model), model.config), found.sequences[0].tolist()
    with torch.no_grad():
        wanted = [naive.log_probabilities(row)[-1], *(naive.log_probabilities([token])[0] for token in text[9:-1])]
    assert len(text) > 9
    for logits, one in zip(found.logits, wanted, strict=True):
        torch.testing.assert_close(logits[0], one, **WITHIN)


def test_padded_prompts_and_beams_write_what_each_writes_alone() -> None:
    model, (one, other) = model_of(), texts(9, 5)
    ids = torch.tensor([one, [0] * 4 + other])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    for search in ({"do_sample": False}, {"num_beams": 3}):
        options: dict[str, Any] = {"max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None, **search}
        both = model.generate(ids, attention_mask=mask, **options)
        for number, row in enumerate((one, other)):
            alone = model.generate(torch.tensor([row]), **options)
            assert both[number, 9:].tolist() == alone[0, len(row) :].tolist(), search
    short = model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False, pad_token_id=0, use_cache=False)
    assert (
        short[:, 9].tolist()
        == model.generate(ids, attention_mask=mask, max_new_tokens=1, pad_token_id=0)[:, 9].tolist()
    )


def test_a_label_is_read_at_the_last_token_beside_padding() -> None:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(TransfoXLConfig(**SMALL, num_labels=3)).eval()
    (row,) = texts(6)
    ids = torch.tensor([[*row, 0, 0], [0, 0, *row], [*row, *row[:2]]])
    mask = torch.tensor([[1] * 6 + [0] * 2, [0] * 2 + [1] * 6, [1] * 8])
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).logits
        alone = model(input_ids=torch.tensor([row])).logits
    torch.testing.assert_close(found[:2], alone.expand(2, 3), **WITHIN)
    loss = model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 2])).loss
    assert loss.requires_grad and float(loss.detach()) > 0


# -- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_auto_classes_load_what_was_saved(variant: str, tmp_path: Path) -> None:
    model = model_of(variant)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), TransfoXLConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tied = model.config.tie_word_embeddings
    assert (again.crit.out_layers[0].weight is again.transformer.word_emb.emb_layers[0].weight) is tied
    ids = torch.tensor(texts(20))
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


LAYER = (
    *("dec_attn.qkv_net.weight", "dec_attn.r_net.weight", "dec_attn.o_net.weight", "dec_attn.r_w_bias"),
    *("dec_attn.r_r_bias", "dec_attn.layer_norm.weight", "dec_attn.layer_norm.bias", "pos_ff.CoreNet.0.weight"),
    *("pos_ff.CoreNet.0.bias", "pos_ff.CoreNet.3.weight", "pos_ff.CoreNet.3.bias", "pos_ff.layer_norm.weight"),
    "pos_ff.layer_norm.bias",
)
PUBLISHED = {
    *(f"transformer.layers.{layer}.{name}" for layer in range(2) for name in LAYER),
    *(f"transformer.word_emb.emb_layers.{cluster}.weight" for cluster in range(3)),
    *(f"transformer.word_emb.emb_projs.{cluster}" for cluster in range(3)),
    *(f"crit.out_layers.{cluster}.{name}" for cluster in range(3) for name in ("weight", "bias")),
    *(f"crit.out_projs.{cluster}" for cluster in range(3)),
    *("crit.cluster_weight", "crit.cluster_bias"),
}
"""Names of the tensors of a published model with two layers and three clusters, in transformers 4."""
FOLDER = {"adaptive": True, "attn_type": 0, "sample_softmax": -1, "tie_weight": True, "tie_projs": [False, True, True]}
"""Further fields of a published model's config.json."""


def test_published_weights_are_taken_over(tmp_path: Path) -> None:
    model = model_of("published")
    tensors = {name: one.detach().clone() for name, one in model.named_parameters(remove_duplicate=False)}
    assert set(tensors) == PUBLISHED
    save_file({**tensors, "transformer.pos_emb.inv_freq": torch.ones(8)}, tmp_path / "model.safetensors")
    values = {**SMALL, **VARIANTS["published"], **FOLDER, "model_type": "transfo-xl"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = ModelConfig(weights=str(tmp_path))
    assert config.family == "transformer_xl" and check_model(config, 16) == []
    again: Any = build_on_meta(config, "causal_lm", Vocabulary(60))
    names = [name for name, _ in again.named_parameters()]
    found = dict(weight_source(config, again, 0)(names))
    again.to_empty(device="cpu").tie_weights()
    with torch.no_grad():
        for name, parameter in again.named_parameters():
            parameter.copy_(found[name])
    ids = torch.tensor(texts(20))
    assert torch.equal(model(input_ids=ids).logits, again.eval()(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cutoffs": [30, 12]}, "cutoffs=[30, 12] must rise"),
        ({"cutoffs": [12, 60]}, "below vocab_size, which is 60"),
        ({"div_val": 5, "cutoffs": [5, 10, 20]}, "div_val=5 must be at least 1"),
        ({"tie_projs": [True]}, "must name each of 3 clusters"),
        ({"d_model": 15, "d_embed": 15}, "must be even"),
        ({"mem_len": -1}, "mem_len=-1 is a number of positions"),
        ({"attn_type": 2}, "attn_type=2 is not supported"),
        ({"init": "xavier"}, "must be normal or uniform"),
        ({"dropout": 1.5}, "must be between 0 and 1"),
        ({"mem_lenn": 4}, "did you mean model.config.mem_len"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], words: str) -> None:
    problems = check_model(ModelConfig("transformer_xl", {**SMALL, **fields}), 16)
    assert problems and any(words in f"{problem.field} {problem.why} {problem.fix}" for problem in problems), problems


def test_heads_that_it_lacks_are_refused() -> None:
    (problem,) = check_model(ModelConfig("transformer_xl", SMALL), 16, "masked_lm")
    assert problem.fix.endswith("causal_lm, sequence_classification")
    assert check_model(ModelConfig("transformer_xl", SMALL), 16, "sequence_classification") == []
