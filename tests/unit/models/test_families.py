"""Every model family has complete initial weights, and its description names modules that the model has. Decoders also
load in transformers, and their loss falls within three steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto import modeling_auto
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.family import families
from trireme.models.find_blocks import blocks_of, embeddings_of, heads_of
from trireme.models.heads import HEADS
from trireme.models.initial_weights import initial_weights
from trireme.models.loss import next_token_labels, token_loss
from trireme.models.model_config import ModelConfig, hf_config
from trireme.models.pretrained import folder_weights

FAMILIES = list(families())
DECODERS = [name for name, family in families().items() if family.cut is not None]
TENSOR = [name for name, family in families().items() if family.tensor is not None]


def _config(family: str) -> ModelConfig:
    preset = yaml.safe_load((Path(__file__).parents[3] / "configs" / "model" / f"{family}_tiny.yaml").read_text())
    config = {key: float(value) if value == "1e-5" else value for key, value in preset["config"].items()}
    return ModelConfig(family, config)


def _head(family: str) -> str:
    """A head that the family has: a decoder's language model head, else the first one in the table."""
    if family in DECODERS:
        return "causal_lm"
    config = hf_config(_config(family))
    able = [name for name, head in HEADS.items() if type(config) in getattr(modeling_auto, head.factory)._model_mapping]
    return next(name for name in able if name != "causal_lm")


def _meta(family: str) -> PreTrainedModel:
    config = _config(family)
    tokens = min(500, config.config.get("vocab_size", 500))
    return build_on_meta(config, _head(family), Vocabulary(tokens, bos=1, eos=2, pad=3))


def _model(family: str) -> PreTrainedModel:
    model = _meta(family).to_empty(device="cpu")
    model.tie_weights()
    targets = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, tensor in initial_weights(_meta(family), 0, None, dict(families()[family].initial)):
            targets.pop(name).copy_(tensor)
    assert not targets
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_initial_weights_are_complete_and_finite(family: str) -> None:
    model = _meta(family)
    names = [
        name
        for name, tensor in initial_weights(model, 0, None, dict(families()[family].initial))
        if bool(torch.isfinite(tensor).all())
    ]
    assert sorted(names) == sorted([n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()])


@pytest.mark.parametrize("family", DECODERS)
def test_transformers_reads_what_was_saved_and_so_do_we(tmp_path: Path, family: str) -> None:
    model = _model(family).eval()
    model.save_pretrained(tmp_path)
    attention = _config(family).attention
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    tokens = torch.arange(4, 24).view(2, 10)
    with torch.no_grad():
        here, there = (one(input_ids=tokens, use_cache=False).logits for one in (model, again))
    # trireme computes RecurrentGemma's recurrence as a scan, in another order than transformers' loop.
    torch.testing.assert_close(here, there, rtol=0, atol=1e-5 if family == "recurrent_gemma" else 0)
    ours = dict(folder_weights(_meta(family), tmp_path, families()[family]))
    assert all(torch.equal(ours[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", DECODERS)
def test_a_step_lowers_the_loss(family: str) -> None:
    model = _model(family).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(4, 24).view(2, 10)
    losses = []
    for _ in range(3):
        loss = token_loss(model(input_ids=tokens, use_cache=False).logits, next_token_labels(tokens))
        loss.backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / 18)
    assert losses[2] < losses[1] < losses[0]
    assert abs(losses[0] - torch.tensor(512.0).log().item()) < 1.5


@pytest.mark.parametrize("family", TENSOR)
def test_plans_name_modules_and_attributes_that_exist(family: str) -> None:
    spec, model = families()[family], _meta(family)
    assert spec.tensor is not None
    blocks = blocks_of(model, spec)
    plan = spec.tensor
    fused = [path for path, _ in plan.fused]
    assert set(fused) <= {*plan.column, *plan.row}
    for path in (*plan.inputs, *plan.column, *plan.row, *plan.norms, *plan.per_head, *plan.key_value):
        assert any(path in dict(block.named_modules()) for block in blocks), path
    for path, attribute in (*plan.divided, *([plan.groups] if plan.groups else [])):
        assert any(hasattr(dict(block.named_modules()).get(path), attribute) for block in blocks), (path, attribute)
    for field in (*(field for field, _ in plan.splits), *([plan.key_value_heads] if plan.key_value_heads else [])):
        assert hasattr(model.config, field), field


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_and_head_is_found(family: str) -> None:
    spec, model = families()[family], _meta(family)
    assert blocks_of(model, spec) and len(list(model.named_modules())) > len(blocks_of(model, spec))
    assert all(path in dict(model.named_modules()) for path, _ in embeddings_of(model, spec))
    for task, path in spec.heads:
        assert task != _head(family) or path in dict(heads_of(model, spec)), path


@pytest.mark.parametrize("family", DECODERS)
def test_modules_that_stages_leave_out_exist(family: str) -> None:
    spec, model = families()[family], _meta(family)
    (stack,), cut = spec.stacks, spec.cut
    assert cut is not None
    assert getattr(model.config, stack.layers) == len(list(model.get_submodule(stack.blocks).children()))
    for path, _ in cut.entry:
        owner, _, leaf = path.rpartition(".")
        assert hasattr(model.get_submodule(owner), leaf), path
    for path, attribute, _ in (*cut.first_stage_only, *cut.last_stage_only):
        assert hasattr(model.config if path == "config" else model.get_submodule(path), attribute), (path, attribute)


def test_a_soft_cap_that_is_off_changes_no_bit() -> None:
    cut = families()["recurrent_gemma"].cut
    assert cut is not None
    ((_, _, cap),) = cut.last_stage_only
    # From 1e-13 to 1e13: beyond it, tanh(x / cap) is no longer x / cap to the last bit of fp32.
    hidden = torch.randn(10_000, dtype=torch.float64).mul(8).clamp(-30, 30).exp().to(torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.cat([hidden, -hidden, torch.zeros(1)]).to(dtype).requires_grad_()
        capped = torch.tanh(values / cap) * cap  # type: ignore[operator]
        assert torch.equal(capped, values)
        assert bool((torch.autograd.grad(capped.sum(), values)[0] == 1).all())


@pytest.mark.parametrize("family", DECODERS)
def test_kernels_are_those_that_the_class_has(family: str) -> None:
    built = _meta(family)
    flags = {
        "sdpa": "_supports_sdpa",
        "flash_attention_2": "_supports_flash_attn",
        "flex_attention": "_supports_flex_attn",
    }
    has = {"eager"} | {kernel for kernel, flag in flags.items() if getattr(built, flag)}
    assert set(families()[family].attention) <= has
