"""Tests of linear recurrences and RecurrentGemma: a scan gives the states of a loop over time, and the model with this
scan has the outputs of transformers' class; also padding, packed documents, generation and exports.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from trireme.models import linear_recurrence
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.linear_recurrence import linear_scan
from trireme.models.linear_recurrent_gemma import LinearRglru, use_linear_recurrence
from trireme.models.model_config import ModelConfig
from trireme.models.window_attention import KERNEL

SIZES = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "lru_width": 16,
    "head_dim": 8,
    "attention_window_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": None,
}


def loop(gates: Tensor, inputs: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written, in double precision."""
    a, x = gates.double(), inputs.double()
    state = torch.zeros_like(x[:, 0]) if first is None else first.double()
    states = []
    for t in range(x.shape[1]):
        state = a[:, t] * state + x[:, t]
        states.append(state)
    return torch.stack(states, 1), state


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_a_scan_is_the_loop(length: int, one_by_one: bool, begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_recurrence, "WIDE", 1 if one_by_one else 10**9)
    torch.manual_seed(length)
    gates = torch.rand(2, length, 5).masked_fill(torch.rand(2, length, 1) < 0.05, 0).requires_grad_()
    inputs = torch.randn(2, length, 5, requires_grad=True)
    first = torch.randn(2, 5, requires_grad=True) if begun else None
    given = [each for each in (gates, inputs, first) if each is not None]
    weights = torch.randn(2, length, 5)
    found, wanted = (function(gates, inputs, first) for function in (linear_scan, loop))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    ours, theirs = ((states * weights).sum() + last.sin().sum() for states, last in (found, wanted))
    for one, other in zip(torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(inputs, inputs.detach().clone())


def test_states_are_kept_in_fp32() -> None:
    gates, inputs = torch.full((1, 512, 4), 0.99), torch.full((1, 512, 4), 0.01)
    states, last = linear_scan(gates.bfloat16(), inputs.bfloat16())
    exact, _ = loop(gates.bfloat16(), inputs.bfloat16(), None)
    assert states.dtype == torch.bfloat16 and last.dtype == torch.float32
    torch.testing.assert_close(states.double(), exact, rtol=2**-8, atol=0)


def stock(**changes: object) -> RecurrentGemmaForCausalLM:
    torch.manual_seed(0)
    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**SIZES, **changes}))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def mended(model: RecurrentGemmaForCausalLM) -> RecurrentGemmaForCausalLM:
    changed = copy.deepcopy(model)
    use_linear_recurrence(changed)
    assert any(isinstance(module, LinearRglru) for module in changed.modules())
    return changed


def test_logits_and_gradients_are_those_of_the_stock_class() -> None:
    model = stock()
    changed = mended(model)
    ids = torch.randint(1, 61, (2, 100))
    found = []
    for each in (model, changed):
        logits = each(input_ids=ids, use_cache=False).logits
        logits.square().sum().backward()
        found.append((logits, {name: one.grad for name, one in each.named_parameters()}))
    (theirs, wanted), (ours, gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        largest = float(gradient.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize("length", [16, 17, 47, 48])
def test_windows_of_long_texts(length: int) -> None:
    model = stock(attention_window_size=16, num_key_value_heads=1)
    changed = mended(model)
    assert changed.config._attn_implementation == KERNEL
    ids = torch.randint(1, 61, (2, length))
    found = []
    for each in (model, changed):
        logits = each(input_ids=ids, use_cache=False).logits
        logits.square().sum().backward()
        found.append((logits, each.model.layers[2].temporal_block.k_proj.weight.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    positions = torch.cat([torch.arange(length - 9), torch.arange(9)])[None]
    both = [each(input_ids=ids[:1], position_ids=positions, use_cache=False).logits for each in (model, changed)]
    torch.testing.assert_close(both[1][:, : length - 9], both[0][:, : length - 9], rtol=1e-5, atol=1e-5)
    alone = changed(input_ids=ids[:1, -9:], use_cache=False).logits
    torch.testing.assert_close(both[1][:, -9:], alone, rtol=1e-5, atol=1e-5)
    written = [each.generate(ids, max_new_tokens=5, do_sample=False) for each in (model, changed)]  # type: ignore[operator]
    assert torch.equal(*written)


def test_no_graph_is_left_on_modules() -> None:
    changed = mended(stock())
    for cached in (False, True):
        changed(input_ids=torch.randint(1, 61, (2, 9)), use_cache=cached).logits.sum().backward()
        copy.deepcopy(changed)
    model = stock()
    model(input_ids=torch.randint(1, 61, (2, 9)), use_cache=False).logits.sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):  # the stock class leaves a graph
        copy.deepcopy(model)


def test_documents_of_a_row_are_as_alone() -> None:
    changed = mended(stock())
    first, second = torch.randint(1, 61, (1, 70)), torch.randint(1, 61, (1, 31))
    positions = torch.cat([torch.arange(70), torch.arange(31)])[None]
    together = changed(input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    alone = [changed(input_ids=each, use_cache=False).logits for each in (first, second)]
    torch.testing.assert_close(together, torch.cat(alone, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prompt", [1, 2, 5])
def test_padding_changes_nothing(prompt: int) -> None:
    changed, pad = mended(stock()), 6
    long, short = torch.randint(1, 61, (1, prompt + pad)), torch.randint(1, 61, (1, prompt))
    ids = torch.cat([long, torch.cat([torch.zeros(1, pad, dtype=torch.int64), short], 1)])
    mask = (torch.arange(prompt + pad) >= torch.tensor([[0], [pad]])).long()
    padded = changed(input_ids=ids, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(padded[1:, pad:], changed(input_ids=short, use_cache=False).logits, rtol=1e-5, atol=1e-5)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    written = changed.generate(ids, attention_mask=mask, **greedy)[:, prompt + pad :]  # type: ignore[operator]
    alone = [changed.generate(each, **greedy)[0, each.shape[1] :] for each in (long, short)]  # type: ignore[operator]
    assert torch.equal(written, torch.stack(alone))


def test_generation_goes_on_from_states() -> None:
    changed = mended(stock())
    ids = torch.randint(1, 61, (1, 20))
    for _ in range(6):
        ids = torch.cat([ids, changed(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    written = changed.generate(ids[:, :20], max_new_tokens=6, do_sample=False)  # type: ignore[operator]
    assert torch.equal(written, ids)


def test_exports_are_those_of_the_stock_class(tmp_path: Path) -> None:
    changed = mended(stock())
    changed.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is RecurrentGemmaForCausalLM
    ids = torch.randint(1, 61, (1, 30))
    wanted = changed(input_ids=ids).logits
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-5)
    use_linear_recurrence(loaded)
    torch.testing.assert_close(loaded(input_ids=ids).logits, wanted)


def test_recipes_build_recurrent_gemma_with_the_scan() -> None:
    config = ModelConfig("recurrent_gemma", {name: value for name, value in SIZES.items() if "token" not in name})
    model = build_on_meta(config, "causal_lm", Vocabulary(61, pad=0))
    assert sum(isinstance(module, LinearRglru) for module in model.modules()) == 2


KERNELS = """
import torch
from trireme.models import linear_recurrence, scan_kernel

device = "cuda" if torch.cuda.is_available() else "cpu"
for batch, length, features in ((2, 9, 70), (1, 1, 3), (3, 40, 64)):
    a, x = torch.rand(batch, length, features, device=device), torch.randn(batch, length, features, device=device)
    for name in ("scan", "scan_back"):
        kernel, plain = getattr(scan_kernel, f"{name}_on_gpu_"), getattr(linear_recurrence, f"{name}_")
        found, wanted = x.clone(), x.cpu().clone()
        kernel(a, found)
        plain(a.cpu(), wanted)
        torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs triton, which runs the kernel without a GPU too")
def test_the_kernel_for_gpus_is_the_scan() -> None:
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    run = [sys.executable, "-c", KERNELS]
    done = subprocess.run(run, env={**os.environ, **interpreted}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
