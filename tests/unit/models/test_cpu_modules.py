"""Tests of quantised models that keep chosen modules on the CPU: these modules are not quantised, and tensors are moved
between devices. Names that match no module, trained modules, and plans that place parameters are refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from helpers.adapted import filled, logits, on_meta
from helpers.quantised import quantised
from trireme.errors import UserError
from trireme.models.adapter_config import AdapterConfig
from trireme.models.quantization.cpu_modules import device_of, empty_on, moved
from trireme.models.quantization.quantised_layer import quantised_layers
from trireme.parallel.check_quantised import check_quantised
from trireme.parallel.plan import Degrees, Plan

FIRST = AdapterConfig(rank=2, targets=r"model\.layers\.0\..*_proj")


def _config(*on_cpu: str, **fields: Any) -> Any:
    return quantised("llama", adapter=FIRST, method="torchao_int4", group_size=16, on_cpu=list(on_cpu), **fields)


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace torchao's rounding by a plain one, since the choice of numbers does not matter here."""
    from trireme.models.quantization.torchao_numbers import GroupIntegers

    def pack(self: Any, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scales = weight.view(len(weight), -1, self.group_size).abs().amax(2) / 7
        codes = (weight / scales.repeat_interleave(self.group_size, 1)).round().to(torch.int8) & 15
        return {"packed": (codes[:, ::2] | codes[:, 1::2] << 4).view(torch.uint8), "scales": scales.view(torch.int32)}

    monkeypatch.setattr(GroupIntegers, "pack", pack)


def test_modules_on_the_cpu_are_not_quantised() -> None:
    model = on_meta(_config("model.layers.1", "lm_head"))
    paths = [path for path, _ in quantised_layers(model)]
    assert paths and all(path.startswith("model.layers.0.") for path in paths)
    empty_on(model, torch.device("meta"))  # in place of a GPU
    where = {name: one.device.type for name, one in model.named_parameters()}
    assert where["lm_head.weight"] == where["model.layers.1.self_attn.q_proj.weight"] == "cpu"
    assert where["model.embed_tokens.weight"] == where["model.layers.0.input_layernorm.weight"] == "meta"


def test_without_a_gpu_modules_on_the_cpu_equal_skipped_ones() -> None:
    kept = filled(_config("model.layers.1"))
    skipped = filled(_config(skip=["model.layers.1.*"]))
    assert torch.equal(logits(kept), logits(skipped))


def test_trees_move_and_keep_their_form() -> None:
    tree = (torch.ones(2), {"a": [torch.ones(1), None]}, 3)
    there = moved(tree, torch.device("meta"))
    assert there[0].device.type == there[1]["a"][0].device.type == "meta" and there[1]["a"][1] is None and there[2] == 3
    assert device_of((None, {"x": [torch.ones(1, device="meta")]})) == torch.device("meta") and device_of(()) is None


@pytest.mark.parametrize(
    ("on_cpu", "words"), [("model.layers.7", "matches no module"), ("model.layers.0", "is trained")]
)
def test_modules_that_cannot_stay_on_the_cpu_are_refused(on_cpu: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        on_meta(_config(on_cpu))


def test_plans_that_place_parameters_themselves_are_refused() -> None:
    config = _config("lm_head").quantization
    assert config is not None and check_quantised(Plan(), Degrees(), config) == []
    ddp = Plan(name="ddp", replicate="auto")
    (problem,) = check_quantised(ddp, Degrees(replicate=2), config)
    assert problem.field == "model.quantization.on_cpu" and "plan ddp" in problem.why
    assert not check_quantised(ddp, Degrees(replicate=2), dataclasses.replace(config, on_cpu=[]))
