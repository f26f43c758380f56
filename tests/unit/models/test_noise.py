"""The random noise of training (dropout, layer drop, stochastic depth, NEFTune) depends on the sample, and not on its
batch, padding, packing or recomputation.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.noisy_models import MODELS, Noisy, noisy
from torch import Tensor, nn
from trireme.models.attach_noise import KeyedModule
from trireme.models.model_config import ModelConfig
from trireme.models.neftune import token_embeddings
from trireme.models.noise import Noise, document_lengths
from trireme.models.noise_keys import MicroKeys, Part, micro_keys
from trireme.models.other_families import other_family
from trireme.parallel.recompute import recompute

SAMPLES = torch.tensor([5, 9, 2**40, 3])


@pytest.mark.parametrize("kind", MODELS)
def test_a_sample_draws_alike_in_every_batch(kind: str) -> None:
    made = noisy(kind)
    whole = made.outputs(SAMPLES, range(4))
    assert torch.equal(made.outputs(SAMPLES, range(4)), whole)
    torch.testing.assert_close(torch.cat([made.outputs(SAMPLES, [row]) for row in range(4)]), whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(made.outputs(SAMPLES, [2, 0]), whole[[2, 0]], rtol=0, atol=1e-5)
    made.noise.begin_step(1, 1)
    assert not torch.allclose(made.outputs(SAMPLES, range(4)), whole, atol=1e-3)
    made.model.eval()
    quiet = made.outputs(SAMPLES, range(4))
    made.end()
    assert torch.equal(made.model(**made.inputs)[0], quiet)


@pytest.mark.parametrize("kind", MODELS)
def test_torchs_generators_are_left_alone(kind: str) -> None:
    made, before = noisy(kind), torch.get_rng_state()
    made.outputs(SAMPLES, range(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["bert", "vit", "opt"])
def test_the_gradient_of_a_batch_is_the_sum_of_those_of_its_samples(kind: str) -> None:
    made = noisy(kind)
    made.model.double()
    made.inputs = {n: one.double() if one.is_floating_point() else one for n, one in made.inputs.items()}

    def gradient(rows: list[int]) -> Tensor:
        made.model.zero_grad()
        with made.noise.running(made.noise.keys_of(SAMPLES[rows])):
            made.model(**{name: value[rows] for name, value in made.inputs.items()})[0].square().sum().backward()
        return torch.cat([one.grad.flatten() for one in made.model.parameters() if one.grad is not None])

    whole, parts = gradient([0, 1, 2, 3]), torch.stack([gradient([row]) for row in range(4)]).sum(0)
    assert float((whole - parts).norm() / whole.norm()) < 1e-12


def test_padding_does_not_change_a_sample() -> None:
    made = noisy("gpt2")
    tokens = made.inputs["input_ids"]
    short = made.model_outputs(SAMPLES[:1], input_ids=tokens[:1, :7])
    mask = (torch.arange(12) < 7).long().expand(1, 12)
    keys = made.noise.keys_of(SAMPLES[:1], lengths=torch.tensor([[7]]))
    with made.noise.running(keys):
        padded = made.model(input_ids=tokens[:1], attention_mask=mask)[0][:, :7]
    torch.testing.assert_close(padded, short, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_packed_document_draws_as_it_does_alone(attention: str) -> None:
    made = noisy("gpt_neox", attention=attention, attention_dropout=0.1 if attention == "eager" else 0.0)
    tokens = made.inputs["input_ids"]
    alone = [made.model_outputs(SAMPLES[i : i + 1], input_ids=tokens[i : i + 1, :n]) for i, n in enumerate((5, 7))]
    documents = torch.tensor([[int(SAMPLES[0])] * 5 + [int(SAMPLES[1])] * 7])
    places = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with made.noise.running(made.noise.keys_of(torch.tensor([77]), documents, places)):
        packed = made.model(input_ids=torch.cat([tokens[0, :5], tokens[1, :7]])[None], position_ids=places)[0]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-5)


def test_lengths_of_documents() -> None:
    documents = torch.tensor([[4, 4, 9, 9, 9, -1], [2, 2, 2, 2, 4, 4]])
    assert document_lengths(documents).tolist() == [[2, 2, 3, 3, 3, 1], [4, 4, 4, 4, 2, 2]]


@pytest.mark.parametrize("how", ["full", "selective"])
def test_recomputed_blocks_draw_the_same(how: str) -> None:
    plain, again = noisy("gpt2"), noisy("gpt2")
    recompute(again.blocks, how, again.noise)
    expected, found = _gradient(plain), _gradient(again)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_blocks_are_recomputed_with_their_own_micro_batch() -> None:
    """As in a pipeline: the second micro-batch runs forward before the first one runs backward."""
    made, other = noisy("gpt2"), noisy("gpt2")
    expected = _gradient(made)
    recompute(other.blocks, "full", other.noise)
    with other.noise.in_place():
        loss = other.outputs(SAMPLES, range(4)).square().mean()
        with torch.no_grad():
            other.outputs(SAMPLES + 1, range(4))
        with other.noise.running(other.noise.keys_of(SAMPLES + 1)):
            loss.backward()
    assert other.first_weight.grad is not None
    torch.testing.assert_close(other.first_weight.grad, expected, rtol=0, atol=1e-6)


def _gradient(made: Noisy) -> Tensor:
    keys = made.noise.keys_of(SAMPLES)
    with made.noise.running(keys):
        made.model(**made.inputs)[0].square().mean().backward()
    assert made.first_weight.grad is not None
    return made.first_weight.grad


def test_layers_that_run_several_times_draw_anew() -> None:
    """ALBERT runs one layer again and again."""
    made = noisy("albert")
    drawn: list[Tensor] = []

    def note(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        result = Noise.dropout(made.noise, input, p, training, inplace)
        drawn.append((result == 0) & (input != 0))
        return result

    made.noise.functions["dropout"] = note
    made.outputs(SAMPLES, range(4))
    masks = [mask for mask in drawn if mask.shape == (4, 12, 32)]
    assert len(masks) == 4
    assert all(not torch.equal(a, b) for index, a in enumerate(masks) for b in masks[:index])


def test_functional_dropout_is_torchs_own_again_outside() -> None:
    made, own = noisy("gpt2"), F.dropout
    with made.noise.running(made.noise.keys_of(SAMPLES)):
        assert own != F.dropout
        with pytest.raises(ZeroDivisionError), made.noise.running(None):
            1 / 0  # noqa: B018
        assert own != F.dropout
    assert own == F.dropout
    assert not any(isinstance(module, KeyedModule) for module in made.end().modules())
    assert all(not module._forward_hooks and "noise" not in vars(module) for module in made.model.modules())


def test_whole_features_are_dropped() -> None:
    class Convolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout2d(0.5)

        def forward(self, images: Tensor) -> Tensor:
            return self.drop(images)

    made = Noisy.of(Convolution(), {"images": torch.ones(4, 8, 3, 3)})
    with made.noise.running(made.noise.keys_of(SAMPLES)):
        found = made.model(torch.ones(4, 8, 3, 3))
    per_feature = found.flatten(2)
    assert torch.equal(per_feature.amin(2), per_feature.amax(2)) and set(found.unique().tolist()) == {0.0, 2.0}


# -- parts of tensors ------------------------------------------------------------------------------------------


class _Border:
    def __init__(self, sequence: bool) -> None:
        self.sequence = sequence


@pytest.mark.parametrize(
    ("shape", "axis", "features", "sequence"),
    [
        ((4, 8, 6, 6), 1, False, False),  # heads
        ((4, 6, 32), 2, True, False),  # inner features
        ((4, 6, 32), 1, False, True),  # positions
    ],
)
def test_tensor_ranks_draw_their_part_of_the_whole(
    shape: tuple[int, ...], axis: int, features: bool, sequence: bool
) -> None:
    whole = _drawn(shape, None)
    half = tuple(size // 2 if number == axis else size for number, size in enumerate(shape))
    width = 16 if features else 32
    parts = [_drawn(half, Part(rank, _Border(sequence), width, features)) for rank in range(2)]
    assert torch.equal(torch.cat(parts, axis), whole)


def test_tensor_ranks_with_heads_of_every_group() -> None:
    """CodeGen's four groups of heads, of which each rank holds a part."""
    whole = _drawn((4, 8, 6, 6), None)
    parts = [_drawn((4, 4, 6, 6), Part(rank, _Border(False), 32, ranks=2, groups=4)) for rank in range(2)]
    assert torch.equal(torch.stack([part.unflatten(1, (4, 1)) for part in parts], 2).reshape(whole.shape), whole)


def _drawn(shape: tuple[int, ...], part: Part | None) -> Tensor:
    made = noisy("gpt2")
    site = next(module.noise_site for module in made.model.modules() if isinstance(module, KeyedModule))
    site.part = part
    with made.noise.running(made.noise.keys_of(SAMPLES)):
        made.noise.site = site
        return F.dropout(torch.ones(shape), 0.5)


def test_samples_and_heads_in_one_axis() -> None:
    keys = micro_keys((1, 2), SAMPLES)
    apart, joined = keys.of_rows((4, 3, 5, 7))[0], keys.of_rows((12, 5, 7))[0]
    assert torch.equal(apart.flatten(0, 1), joined)
    assert torch.equal(keys.of_rows((4, 6, 8))[0].flatten(), keys.of_rows((24, 8))[0])


def test_tensors_that_samples_share_have_one_noise() -> None:
    one, other = micro_keys((1, 2), SAMPLES[:2]), micro_keys((1, 2), SAMPLES[1:])
    assert torch.equal(one.of_rows((5, 8))[0], other.of_rows((5, 8))[0])


def test_keys_of_tensors_with_time_first() -> None:
    keys, turned = micro_keys((1, 2), SAMPLES), micro_keys((1, 2), SAMPLES, time_first=True)
    assert torch.equal(turned.of_rows((8, 4, 6))[0], keys.of_rows((4, 8, 6))[0].transpose(0, 1))


# -- layer drop and stochastic depth ---------------------------------------------------------------------------


def test_layer_drop_skips_samples() -> None:
    made = noisy("opt", layerdrop=0.5, dropout=0.0)
    hidden: list[tuple[Tensor, Tensor]] = []
    for block in made.blocks:
        block.register_forward_hook(lambda _, args, output: hidden.append((args[0], output)))
    samples = torch.arange(400)
    with made.noise.running(made.noise.keys_of(samples)), torch.no_grad():
        made.model(input_ids=made.inputs["input_ids"][:1].expand(400, -1))
    skipped = torch.stack([(before == after).flatten(1).all(1) for before, after in hidden]).float()
    assert torch.allclose(skipped.mean(1), torch.tensor(0.5), atol=0.1)
    assert abs(float(torch.corrcoef(skipped)[0, 1])) < 0.2
    assert made.model.config.layerdrop == 0.0  # transformers itself drops none


def test_stochastic_depth_keeps_the_mean() -> None:
    class DropPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob = 0.25

        def forward(self, hidden: Tensor) -> Tensor:
            raise AssertionError

    made = Noisy.of(nn.ModuleList([DropPath()]), {})
    with made.noise.running(made.noise.keys_of(torch.arange(4000))):
        found = made.model[0](torch.ones(4000, 3, 2))
    assert torch.equal(found.amin((1, 2)), found.amax((1, 2)))
    assert float(found.mean()) == pytest.approx(1.0, abs=0.04)


# -- NEFTune ---------------------------------------------------------------------------------------------------


def _embedded(made: Noisy, keys: MicroKeys | None, tokens: Tensor, alpha: float | None = 5.0) -> Tensor:
    made.noise.neftune_alpha = alpha
    embedding: Any = made.model.get_input_embeddings()
    with made.noise.running(keys) if keys else nullcontext():
        return embedding(tokens).detach()


def test_the_distribution_is_that_of_the_paper() -> None:
    made, tokens = noisy("gpt2"), torch.randint(0, 100, (64, 48))
    noise = _embedded(made, made.noise.keys_of(torch.arange(64)), tokens) - _embedded(made, None, tokens)
    bound = 5 / math.sqrt(48 * 32)  # alpha / sqrt(L d)
    values = (noise / bound).flatten().sort().values
    assert float(values.abs().max()) <= 1 + 1e-5
    distance = float((values - torch.linspace(-1, 1, len(values))).abs().max()) / 2
    assert distance < 1.95 / math.sqrt(len(values))  # Kolmogorov-Smirnov, 0.1 %
    # In the paper a sample's noise has the mean length alpha / sqrt(3), which follows from its variance.
    assert float(noise.flatten(1).norm(dim=1).mean()) == pytest.approx(5 / math.sqrt(3), rel=0.01)


def test_the_scale_is_that_of_the_samples_own_length() -> None:
    made, tokens = noisy("gpt2"), torch.randint(0, 100, (2, 48))
    keys = made.noise.keys_of(SAMPLES[:2], lengths=torch.tensor([[48], [12]]))
    noise = _embedded(made, keys, tokens) - _embedded(made, None, tokens)
    assert float(noise[1].abs().max() / noise[0].abs().max()) == pytest.approx(2.0, rel=0.01)
    documents = torch.tensor([[1] * 36 + [2] * 12])
    places = torch.cat([torch.arange(36), torch.arange(12)])[None]
    packed = made.noise.keys_of(SAMPLES[:1], documents, places)
    noise = _embedded(made, packed, tokens[:1]) - _embedded(made, None, tokens[:1])
    assert float(noise[0, 36:].abs().max() / noise[0, :36].abs().max()) == pytest.approx(math.sqrt(3), rel=0.02)


def test_encoder_and_decoder_have_noise_of_their_own() -> None:
    made, seen = noisy("t5"), {}
    for side in ("encoder", "decoder"):
        embedding = getattr(made.model, side).embed_tokens
        embedding.register_forward_hook(lambda _, args, output, side=side: seen.update({side: (args[0], output)}))
    keys = made.noise.keys_of(SAMPLES, lengths=torch.full((4, 1), 12), target_lengths=torch.full((4, 1), 3))
    with made.noise.running(keys), torch.no_grad():
        made.model(**made.inputs)
    noise = {}
    for side, (tokens, output) in seen.items():
        noise[side] = (output - F.embedding(tokens, made.model.shared.weight)).abs().max().item()
    assert noise["decoder"] / noise["encoder"] == pytest.approx(2.0, rel=0.02)


def test_evaluation_has_no_neftune_noise() -> None:
    made, tokens = noisy("gpt2"), torch.randint(0, 100, (2, 8))
    made.model.eval()
    keys = made.noise.keys_of(SAMPLES[:2])
    assert torch.equal(_embedded(made, keys, tokens), _embedded(made, None, tokens))
    made.model.train()
    assert torch.equal(_embedded(made, None, tokens), made.model.get_input_embeddings().weight[tokens])


def test_models_without_embeddings_of_tokens_refuse_it() -> None:
    with pytest.raises(ValueError, match="needs embeddings of tokens; leave it out for ViT"):
        ModelConfig("vit", neftune_alpha=5.0)
    with pytest.raises(ValueError, match="must be greater than 0"):
        ModelConfig("gpt2", neftune_alpha=0.0)
    swin = noisy("swin")
    assert token_embeddings(swin.model, other_family("swin")) == []


def test_a_dropout_outside_of_every_module_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = noisy("gpt2")
    with made.noise.running(made.noise.keys_of(SAMPLES)):
        for _ in range(2):
            F.dropout(torch.ones(4, 2))
    assert [record.message for record in caplog.records if "by data rank" in record.message] == [
        "a dropout outside of every known module is drawn by data rank: it differs between plans"
    ]
