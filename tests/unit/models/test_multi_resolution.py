"""Tests of multi-resolution attention (MRA), which equals dense attention if its budget covers all pairs of tokens.

With a smaller budget, the error falls as the budget grows.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, MraConfig
from transformers.models.mra import modeling_mra
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.mend_mra import MultiResolutionAttention, use_multi_resolution
from trireme.models.model_config import ModelConfig
from trireme.models.multi_resolution import multi_resolution_attention
from trireme.parallel.apply import materialise

TEXTS, HEADS, LENGTH, SIZE = 2, 3, 100, 16


def example(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Query, key, value, and a mask of the real tokens: the first text has 70."""
    draw = torch.Generator().manual_seed(0)
    states = [torch.randn(TEXTS, HEADS, LENGTH, SIZE, generator=draw, dtype=dtype) for _ in range(3)]
    return [each.requires_grad_() for each in states], torch.arange(LENGTH) < torch.tensor([[70], [LENGTH]])


def dense(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    scores = (query @ key.transpose(-1, -2) / math.sqrt(SIZE)).masked_fill(~real[:, None, None], -math.inf)
    return scores.softmax(-1) @ value * real[:, None, :, None]


@pytest.mark.parametrize("mode", ["full", "sparse"])
def test_a_budget_for_all_pairs_is_dense_attention(mode: str) -> None:
    states, real = example()
    found, wanted = multi_resolution_attention(*states, real, 4, mode), dense(*states, real)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(each.square().sum(), states) for each in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "sparse"])
def test_the_error_falls_as_the_budget_grows(mode: str) -> None:
    states, real = example()
    wanted = dense(*states, real)
    with torch.no_grad():
        errors = [(multi_resolution_attention(*states, real, each, mode) - wanted).norm() for each in range(1, 5)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[2] > 1 and errors[3] < 1e-4, errors


@pytest.mark.parametrize("options", [{}, {"first": 1}, {"diagonal": 3}])
@pytest.mark.parametrize("mode", ["full", "sparse"])
def test_padding_changes_nothing(mode: str, options: dict[str, int]) -> None:
    states, real = example()
    padded = multi_resolution_attention(*states, real, 1, mode, **options)
    alone = multi_resolution_attention(*(each[:1, :, :70] for each in states), None, 1, mode, **options)
    torch.testing.assert_close(padded[:1, :, :70], alone, rtol=1e-6, atol=1e-6)
    assert not padded[0, :, 70:].any()


def test_scores_of_any_size_give_numbers() -> None:
    """If no block is left for means, their weight is zero, however low the scores of the tokens are."""
    (query, key, value), real = example()
    for budget in (2, 4):
        found = multi_resolution_attention(-1e3 * query.abs(), key.abs(), value, real, budget)
        found.sum().backward()
        assert found.isfinite().all() and all(bool(each.grad.isfinite().all()) for each in (query, key, value))


def test_the_diagonal_is_read_token_by_token() -> None:
    """If a block is paired only with itself, it gives what attention within that block gives."""
    (query, key, value), _ = example()
    found = multi_resolution_attention(query, key, value, None, 1, "sparse", diagonal=1)
    for start in range(0, LENGTH, 32):
        here = slice(start, min(start + 32, LENGTH))
        part = [each[:, :, here] for each in (query, key, value)]
        wanted = dense(*part, torch.ones(TEXTS, part[0].shape[2], dtype=torch.bool))
        torch.testing.assert_close(found[:, :, here], wanted, rtol=1e-5, atol=1e-6)


def test_memory_grows_with_the_budget_and_not_with_the_square() -> None:
    """The test measures the largest tensor of a forward pass. Dense attention has one score for each pair of tokens."""
    largest = {}
    for length in (1024, 4096):
        sizes = []
        with torch.no_grad(), _Sizes(sizes):
            multi_resolution_attention(*(torch.randn(1, 1, length, 8) for _ in range(3)), None, 2)
        largest[length] = max(sizes)
    assert largest[4096] <= 4 * largest[1024] < 1024 * 1024


class _Sizes(torch.overrides.TorchFunctionMode):
    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.sizes.append(result.untyped_storage().nbytes() // result.element_size())
        return result


# -- the class of transformers -----------------------------------------------------------------------------------


def _index_max(values: Tensor, indices: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    found = values.new_full((values.shape[0], rows, 32), -math.inf)
    for text, numbers in enumerate(indices.tolist()):
        for pair, number in enumerate(numbers):
            row = number // columns
            found[text, row] = torch.maximum(found[text, row], values[text, :, pair])
    spread = torch.stack([found[text, indices[text] // columns].T for text in range(len(indices))])
    return found.flatten(1), spread


def _mm_to_sparse(query: Tensor, key: Tensor, indices: Tensor) -> Tensor:
    columns = key.shape[1]
    return torch.stack(
        [
            torch.stack([key[text, n % columns].T @ query[text, n // columns] for n in numbers])
            for text, numbers in enumerate(indices.tolist())
        ]
    )


def _sparse_dense_mm(sparse: Tensor, indices: Tensor, dense_key: Tensor, rows: int) -> Tensor:
    columns = dense_key.shape[1]
    found = dense_key.new_zeros(len(indices), rows, dense_key.shape[2], 32)
    for text, numbers in enumerate(indices.tolist()):
        for pair, n in enumerate(numbers):
            found[text, n // columns] += dense_key[text, n % columns] @ sparse[text, pair]
    return found


KERNEL = SimpleNamespace(index_max=_index_max, mm_to_sparse=_mm_to_sparse, sparse_dense_mm=_sparse_dense_mm)
"""The functions of the CUDA kernel, written in PyTorch."""


def _stock(mode: str, **fields: int) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MraConfig(**sizes, num_attention_heads=2, max_position_embeddings=128, approx_mode=mode, **fields)
    model = AutoModelForMaskedLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("fields", [{"block_per_row": 1}, {"block_per_row": 2, "initial_prior_diagonal_n_blocks": 1}])
@pytest.mark.parametrize("mode", ["full", "sparse"])
def test_logits_are_those_of_the_stock_class_with_its_kernel(
    mode: str, fields: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _stock(mode, **fields)
    ids = torch.randint(2, 96, (3, 128), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        zeros = model(input_ids=ids).logits
        monkeypatch.setattr(modeling_mra, "mra_cuda_kernel", KERNEL)
        wanted = model(input_ids=ids).logits
        monkeypatch.undo()
        use_multi_resolution(model)
        found = model(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (zeros - wanted).abs().max() > 0.1  # without its kernel, the stock class computes something else


def test_every_projection_gets_a_gradient_and_padded_texts_are_read_alone() -> None:
    model = _stock("full", block_per_row=1)
    use_multi_resolution(model)
    ids = torch.randint(2, 96, (2, 75), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(75) < torch.tensor([[75], [40]])).long()
    logits = model(input_ids=ids, attention_mask=mask).logits
    alone = model(input_ids=ids[1:, :40]).logits
    torch.testing.assert_close(logits[1:, :40], alone, rtol=1e-5, atol=1e-5)
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        if "attention" in name and name.endswith("weight"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_recipe_builds_it_and_an_export_is_of_the_stock_class(tmp_path: Path) -> None:
    fields = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = ModelConfig("auto", {"model_type": "mra", **fields, "num_attention_heads": 2})
    assert config.family == "mra"
    model, source = (build_on_meta(config, "masked_lm", Vocabulary(96)) for _ in range(2))
    materialise(model, torch.device("cpu"), weight_source(config, source, 0))
    assert sum(isinstance(module, MultiResolutionAttention) for module in model.modules()) == 2
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    use_multi_resolution(again)
    ids = torch.arange(4, 54).view(2, 25)
    assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
    assert ModelConfig(weights=str(tmp_path)).family == "mra"
