"""Tests that initial weights depend only on the seed and the module's name, not on the plan or the rest of the model,
and that they have the distribution of their family.
"""

from __future__ import annotations

import pytest
import torch
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.initial_weights import initial_weights
from trireme.models.model_config import ModelConfig

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
FAMILIES = ["persimmon", "gpt_neox", "llama"]


def _model(family: str, layers: int = 2, **config) -> torch.nn.Module:
    settings = {**SMALL, "num_hidden_layers": layers, **config}
    return build_on_meta(ModelConfig(family, settings), "causal_lm", Vocabulary(60))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_drawn_once_and_finite(family: str) -> None:
    model = _model(family)
    names = [name for name, _ in initial_weights(model, 0)]
    assert sorted(names) == sorted([n for n, _ in model.named_parameters()] + [n for n, _ in model.named_buffers()])
    for name, tensor in initial_weights(model, 0):
        assert tensor.device.type == "cpu" and bool(torch.isfinite(tensor).all()), name
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deeper_model_shares_its_first_layers(family: str) -> None:
    shallow, deep = dict(initial_weights(_model(family, 2), 3)), dict(initial_weights(_model(family, 5), 3))
    assert all(torch.equal(tensor, deep[name]) for name, tensor in shallow.items())


def test_seed_and_name_decide() -> None:
    one, same, other = (dict(initial_weights(_model("llama"), seed)) for seed in (0, 0, 1))
    name, sibling = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], one[sibling])


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(initial_weights(_model("persimmon"), 0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_familys_own_distribution(family: str) -> None:
    """Matrices have the family's standard deviation, norms are one, biases zero, as transformers initialises them."""
    weights = dict(initial_weights(_model(family, hidden_size=128), 0))
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            assert tensor.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        elif "norm" in name:
            assert bool((tensor == 1).all()), name


def test_tied_weights_are_drawn_once() -> None:
    names = [name for name, _ in initial_weights(_model("llama", tie_word_embeddings=True), 0)]
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_an_untouched_tensor_is_an_error() -> None:
    model = _model("llama")
    model.model.layers[0].register_parameter("forgotten", torch.nn.Parameter(torch.empty(3, device="meta")))
    with pytest.raises(RuntimeError, match=r"does not initialise model\.layers\.0\.forgotten"):
        list(initial_weights(model, 0))


def test_rules_of_a_parent_module_hold() -> None:
    """GPT-2 scales the output projections of a block by depth, in a rule that looks at the block."""
    config = ModelConfig("gpt2", {"vocab_size": 64, "n_embd": 64, "n_layer": 8, "n_head": 4, "n_positions": 32})
    weights = dict(initial_weights(build_on_meta(config, "causal_lm", Vocabulary(64)), seed=0))
    for name in ("attn.c_proj", "mlp.c_proj"):
        assert weights[f"transformer.h.0.{name}.weight"].std() == pytest.approx(0.02 / 4, rel=0.1)  # sqrt(2 x 8 blocks)
    assert weights["transformer.h.0.mlp.c_fc.weight"].std() == pytest.approx(0.02, rel=0.1)
