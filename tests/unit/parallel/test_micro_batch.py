"""Tests of micro-batches: mapping a function over nested tensors, moving them to a device, and pinning memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutput
from trireme.parallel.micro_batch import MicroBatch, StepBatch, map_tensors


class Pair(NamedTuple):
    left: Tensor
    right: Any


def tree() -> dict[str, Any]:
    return {
        "deep": {"list": [torch.zeros(2), {"tuple": (torch.ones(2, 3), torch.full((2,), 7))}]},
        "pair": Pair(torch.ones(2), [torch.ones(2), None]),
        "names": ["a", "b"],
        "number": 3,
        "nothing": None,
    }


def micro_batch() -> MicroBatch:
    return MicroBatch({"input_ids": torch.arange(6).view(2, 3)}, tree(), torch.tensor([4, 9]), 6)


def test_a_tree_keeps_its_form() -> None:
    before = tree()
    after = map_tensors(before, lambda tensor: tensor + 1)
    assert after["deep"]["list"][0].tolist() == [1, 1]
    inner = after["deep"]["list"][1]["tuple"]
    assert type(inner) is tuple and inner[0].shape == (2, 3) and inner[1].tolist() == [8, 8]
    assert type(after["pair"]) is Pair and after["pair"].right[1] is None and after["pair"].left.tolist() == [2, 2]
    assert (after["names"], after["number"], after["nothing"]) == (["a", "b"], 3, None)
    assert before["deep"]["list"][0].tolist() == [0, 0], "the tree itself stays"


def test_outputs_of_transformers_keep_their_class_and_fields() -> None:
    outputs = CausalLMOutput(logits=torch.ones(2, 3), hidden_states=(torch.ones(2), torch.zeros(2)))
    doubled = map_tensors(outputs, lambda tensor: tensor * 2)
    assert type(doubled) is CausalLMOutput and doubled.loss is None
    assert doubled.logits.sum() == 12 and doubled["hidden_states"][0].tolist() == [2, 2]
    assert list(doubled.keys()) == ["logits", "hidden_states"]
    cache = DynamicCache()
    assert map_tensors(cache, lambda tensor: tensor) is cache


@pytest.mark.parametrize("kind", [OrderedDict, BatchEncoding])
def test_other_mappings_become_mappings_again(kind: Any) -> None:
    mapped = map_tensors(kind({"input_ids": torch.ones(2)}), lambda tensor: tensor + 1)
    assert mapped["input_ids"].tolist() == [2, 2]


def test_map_reaches_inputs_targets_and_samples() -> None:
    micro = micro_batch()
    seen: list[torch.Size] = []

    def double(tensor: Tensor) -> Tensor:
        seen.append(tensor.shape)
        return tensor * 2

    doubled = micro.map(double)
    assert len(seen) == 1 + 5 + 1
    assert doubled.inputs["input_ids"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert doubled.targets["deep"]["list"][1]["tuple"][1].tolist() == [14, 14]
    assert (doubled.samples.tolist(), doubled.rows, doubled.length) == ([8, 18], 2, 6)
    assert micro.samples.tolist() == [4, 9] and micro.inputs["input_ids"].max() == 5


def test_to_moves_every_tensor() -> None:
    moved = micro_batch().to(torch.device("meta"))
    devices: set[str] = set()
    moved.map(lambda tensor: (devices.add(tensor.device.type), tensor)[1])
    assert devices == {"meta"} and moved.rows == 2 and moved.length == 6
    same = micro_batch()
    there = same.to(torch.device("cpu"))
    assert there.inputs["input_ids"] is same.inputs["input_ids"], "nothing is copied where it lies already"


def test_pin_memory_pins_every_tensor_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator torch pins nothing, so the test checks that each tensor is asked to pin."""
    asked: list[torch.Size] = []
    if not torch.accelerator.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (asked.append(self.shape), self.clone())[1])
    batch = StepBatch([micro_batch(), micro_batch()], labels=3, tokens=12, samples=[0, 1, 2, 3])
    pinned = batch.pin_memory()
    assert pinned is batch and len(pinned.micro_batches) == 2
    if torch.accelerator.is_available():
        flags: list[bool] = []
        for micro in pinned.micro_batches:
            micro.map(lambda tensor: (flags.append(tensor.is_pinned()), tensor)[1])
        assert flags == [True] * 14
    else:
        assert len(asked) == 14
    assert (pinned.labels, pinned.tokens, pinned.samples) == (3, 12, [0, 1, 2, 3])
    assert pinned.micro_batches[1].inputs["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5]]
