"""Models with BatchNorm are refused, unless ``model.frozen_batchnorm`` keeps their running statistics unchanged in
training.
"""

from __future__ import annotations

import pytest
import torch
from trireme.errors import UserError
from trireme.models.build_model import build_on_meta
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig

CONFIGS = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"},
    "mobilevitv2": {"image_size": 32, "width_multiplier": 0.25, "n_attn_blocks": [1, 1, 1]},
    "cvt": {"embed_dim": [16, 16, 16], "num_heads": [1, 1, 1], "depth": [1, 2, 3]},
}


def build(kind: str, frozen: bool) -> torch.nn.Module:
    model = ModelConfig("auto", {"model_type": kind, **CONFIGS[kind]}, frozen_batchnorm=frozen)
    return build_on_meta(model, "image_classification", Facts(labels=("a", "b")))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_with_batch_norm_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UserError, match=r"model\.frozen_batchnorm(.|\n)*BatchNorms, such as " + kind):
        build(kind, frozen=False)


def test_training_leaves_the_statistics_as_they_are() -> None:
    model = build("resnet", frozen=True).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.ones_like(tensor) if "var" in name or "weight" in name else torch.zeros_like(tensor))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images = torch.randn(4, 3, 16, 16)
    together = model.train()(images).logits
    assert before and all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert torch.allclose(together[:1], model(images[:1]).logits, atol=1e-6)
    assert torch.allclose(together, model.eval()(images).logits)
    scale = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).weight
    assert scale.requires_grad
