"""Documents packed into one row give the same losses and gradients as each document alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from helpers.decoders import DECODERS, DROPOUT, EAGER_ONLY
from helpers.micro_batches import of_tokens
from torch import Tensor
from transformers import PreTrainedModel
from trireme.models.build_model import Vocabulary, build_on_meta, weight_source
from trireme.models.family import families
from trireme.models.loss import IGNORE, token_loss
from trireme.models.model_config import ModelConfig
from trireme.parallel.apply import materialise
from trireme.parallel.micro_batch import MicroBatch
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.data.packed_rows import packed

SIZE = 48
ROWS = ((0, 11), (1, 8, 4, 7), (3, 10, 2, 5, 6, 9))
"""Twelve documents in three rows, of which the second and the third have padding."""
LENGTHS = (24, 17, 12, 7, 5, 3, 9, 2, 20, 1, 13, 24)
KERNELS = [
    (family, kernel)
    for family in DECODERS
    for kernel in ("eager", "sdpa")
    if (family not in EAGER_ONLY or kernel == "eager") and families()[family].packs is not False
]


def documents() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(0, 96, (length,), generator=draw) for length in LENGTHS]


def rows(found: Sequence[Tensor]) -> MicroBatch:
    samples = [{**packed([found[number].numpy() for number in row], list(row)), "index": 0} for row in ROWS]
    return CausalLMCollator(SIZE, pad_token_id=5, micro_batch_size=3).micro_batch(samples)


def model(family: str, attention: str) -> PreTrainedModel:
    fields = DECODERS[family]
    config = ModelConfig(family, {**fields, **dict.fromkeys(DROPOUT.keys() & fields.keys(), 0.0)}, attention=attention)
    built, source = (build_on_meta(config, "causal_lm", Vocabulary(96)) for _ in range(2))
    materialise(built, torch.device("cpu"), weight_source(config, source, 0))
    return built.train()


def losses(built: PreTrainedModel, micros: Sequence[MicroBatch]) -> float:
    """The sum of the losses, whose gradients are added to those of the parameters where these are recorded."""
    total = torch.zeros(())
    for micro in micros:
        loss = token_loss(built(**micro.inputs).logits, micro.targets["labels"])
        if loss.requires_grad:
            loss.backward()
        total = total + loss.detach()
    return total.item()


def losses_and_gradient(built: PreTrainedModel, micros: Sequence[MicroBatch]) -> tuple[float, Tensor]:
    built.zero_grad()
    total = losses(built, micros)
    return total, torch.cat([parameter.grad.flatten() for parameter in built.parameters()])


@pytest.mark.parametrize(("family", "attention"), KERNELS)
def test_packed_documents_equal_documents_alone(family: str, attention: str) -> None:
    built, found = model(family, attention), documents()
    one, alone = losses_and_gradient(built, [of_tokens(document[None]) for document in found])
    other, together = losses_and_gradient(built, [rows(found)])
    assert other == pytest.approx(one, rel=1e-6)
    assert (together - alone).norm() < 1e-6 * alone.norm()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", [name for name in DECODERS if "flex_attention" in families()[name].attention])
def test_losses_of_flex_attention(family: str) -> None:
    """Without gradients, which FlexAttention has on GPUs only, and not compiled, to save time."""
    found = documents()
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            one = losses(model(family, "eager"), [of_tokens(document[None]) for document in found])
            other = losses(model(family, "flex_attention"), [rows(found)])
    finally:
        torch.compiler.set_stance("default")
    assert other == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("family", ["opt", "recurrent_gemma"])
def test_documents_leak_without_the_fixes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In transformers, OPT's documents see each other, and RecurrentGemma's convolution reads the document before."""
    for name in ("keep_documents_apart", "mask_by_positions"):
        monkeypatch.setattr(f"trireme.models.build_model.{name}", lambda model, family: None)
    monkeypatch.setattr("trireme.models.linear_recurrent_gemma.keep_documents_apart", lambda model, family: None)
    built, found = model(family, "sdpa"), documents()
    _, alone = losses_and_gradient(built, [of_tokens(document[None]) for document in found])
    _, together = losses_and_gradient(built, [rows(found)])
    assert (together - alone).norm() > 1e-2 * alone.norm()


def test_no_label_and_no_position_leads_across_documents() -> None:
    found = documents()
    micro = rows(found)
    assert "attention_mask" not in micro.inputs and micro.length == sum(LENGTHS)
    assert micro.documents is not None and micro.documents.shape == (3, SIZE)
    labels, numbers, ids = micro.targets["labels"], micro.documents, micro.inputs["input_ids"]
    assert int((labels != IGNORE).sum()) == sum(length - 1 for length in LENGTHS)
    for row, column in (labels != IGNORE).nonzero().tolist():
        assert numbers[row, column] == numbers[row, column + 1] >= 0
        assert labels[row, column] == ids[row, column + 1]
    for row in range(3):
        for number in set(numbers[row].tolist()):
            places = micro.inputs["position_ids"][row][numbers[row] == number]
            assert places.tolist() == list(range(len(places)))
