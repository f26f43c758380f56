"""Attention computed separately for each packed document equals attention with a block-diagonal mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.decoders import DECODERS
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from trireme.models import document_attention as attention
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise

ROWS = torch.tensor([[*range(5), *range(1), *range(6)], [*range(12)], [*range(2), *range(7), *range(3)]])
"""Positions of the documents of three rows."""
LENGTHS = [5, 1, 6, 12, 2, 7, 3]


def mask(kernel: str, window: int | None = None, **others: Any) -> Tensor | None:
    AttentionInterface.register(attention.KERNEL, attention.document_attention)
    AttentionMaskInterface.register(attention.KERNEL, attention.document_mask)
    config = MistralConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=4, sliding_window=window)
    config._attn_implementation = kernel
    make = create_causal_mask if window is None else create_sliding_window_causal_mask
    given = {"attention_mask": None, "past_key_values": None, "position_ids": ROWS, **others}
    return make(config=config, inputs_embeds=torch.zeros(3, 12, 32), **given)


class Layer(nn.Module):
    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def gradients(function: Callable[..., Any], given: Tensor | None, groups: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, 12, 8, generator=draw, requires_grad=True) for heads in (4, 4 // groups, 4 // groups)
    )
    output, _ = function(Layer(groups), query, key, value, given, scaling=0.3)
    (output * torch.randn(output.shape, generator=draw)).sum().backward()
    return [output, *(each.grad for each in (query, key, value))]


@pytest.mark.parametrize("groups", [1, 2])
def test_documents_are_computed_by_themselves(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    alone = attention._alone
    monkeypatch.setattr(attention, "_alone", lambda *given: (calls.append(len(given[0])), alone(*given))[1])
    numbers, dense = mask(attention.KERNEL), mask("sdpa")
    assert numbers is not None and numbers.shape == (3, 1, 1, 12)
    found = gradients(attention.document_attention, numbers, groups)
    assert calls == LENGTHS == attention.document_lengths(numbers)
    for one, other in zip(found, gradients(sdpa_attention_forward, dense, groups), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_document_numbers_give_the_same_mask() -> None:
    numbers = mask(attention.KERNEL)
    assert torch.equal(attention._dense(numbers), mask("sdpa"))


def test_transformers_keeps_documents_apart_where_positions_restart() -> None:
    """Packed rows rely on this, kernel by kernel. Flash attention does it for one row only, and more are refused."""
    dense = mask("sdpa")
    assert dense is not None and int(dense.sum()) == sum(length * (length + 1) // 2 for length in LENGTHS)
    eager: Any = mask("eager")
    assert torch.equal(eager == 0, dense)
    flex: Any = mask("flex_attention")
    row, query, key = (torch.arange(size) for size in (3, 12, 12))
    assert torch.equal(flex.mask_mod(row[:, None, None], 0, query[:, None], key), dense[:, 0])
    assert mask("flash_attention_2") is None
    assert bool(_is_packed_sequence(ROWS[:1], 1)) and not _is_packed_sequence(ROWS, 3)


@pytest.mark.parametrize("window", [3, 12])
def test_a_window_that_matters_is_a_mask(window: int) -> None:
    found = mask(attention.KERNEL, window)
    assert found is not None
    if window == 3:
        assert torch.equal(found, mask("sdpa", window))
    else:
        assert found.dtype is torch.int32


def test_padding_and_plain_rows_stay_as_they_are() -> None:
    padding = (torch.arange(12) < torch.tensor([[12], [7], [9]])).long()
    assert torch.equal(mask(attention.KERNEL, attention_mask=padding), mask("sdpa", attention_mask=padding))
    assert mask(attention.KERNEL, position_ids=torch.arange(12)[None]) is None


def test_a_model_with_this_kernel_writes_as_before() -> None:
    config = ModelConfig("llama", {**DECODERS["llama"], "initializer_range": 0.3})
    texts = {
        "input_ids": torch.tensor([[5, 7, 9, 11], [3, 3, 8, 2]]),
        "attention_mask": torch.tensor([[1] * 4, [0, 0, 1, 1]]),
    }
    written = []
    for apart in (False, True):
        built, source = (build_on_meta(config, "causal_lm", Vocabulary(96)) for _ in range(2))
        if apart:
            attention.attend_within_documents(built)
        materialise(built, torch.device("cpu"), weight_source(config, source, 0))
        written.append(
            built.eval().generate(**texts, max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=3)
        )
    assert torch.equal(*written) and built.config._attn_implementation == attention.KERNEL


def test_all_documents_are_one_call_of_the_kernel_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel runs on GPUs only; here a stand-in with its signature computes what its documentation says."""
    seen: list[Any] = []

    def varlen(
        query: Tensor, key: Tensor, value: Tensor, starts: Tensor, _: Tensor, most: int, __: int, **options: Any
    ):
        seen.append((starts.tolist(), most, options))
        parts = [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
        heads = [[each[part].transpose(0, 1)[None] for each in (query, key, value)] for part in parts]
        found = [
            F.scaled_dot_product_attention(*each, is_causal=True, scale=options["scale"], enable_gqa=True)
            for each in heads
        ]
        return torch.cat([each[0].transpose(0, 1) for each in found])

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    query, key = torch.randn(36, 4, 8), torch.randn(36, 2, 8)
    found = attention._by_varlen(query, key, key, LENGTHS, 0.3)
    assert seen == [([0, 5, 6, 12, 24, 26, 33, 36], 12, {"scale": 0.3, "window_size": (-1, 0), "enable_gqa": True})]
    parts = zip(query.split(LENGTHS), key.split(LENGTHS), strict=True)
    torch.testing.assert_close(found, torch.cat([attention._alone(q, k, k, 0.0, 0.3) for q, k in parts]))
