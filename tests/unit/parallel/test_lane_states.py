"""Tests of the recurrent state that is carried from step to step (``data.packing=lanes``).

Each sample gets the state of the sample before it in the text. The model of these tests counts the tokens that it has
read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trireme.models.family import Carried
from trireme.parallel.lane_states import LaneStates
from trireme.parallel.mesh import Mesh
from trireme.parallel.micro_batch import MicroBatch, Place
from trireme.parallel.plan import Degrees

CARRIED = (Carried("sums", ("layers", "width")), Carried("read", whole=True))


@dataclass
class Outputs:
    sums: Tensor
    read: Tensor


def adding(tokens: Tensor, sums: Tensor, read: Tensor) -> Outputs:
    """Stands for a model: adds up all tokens of a text so far, and counts them."""
    new = tokens.sum(1).float()
    return Outputs((sums + new[:, None, None]).requires_grad_(), read + tokens.shape[1])


def states(lanes: int = 2) -> LaneStates:
    mesh = Mesh(Degrees(), 0, torch.device("cpu"), None, None)
    return LaneStates(CARRIED, SimpleNamespace(layers=2, width=3), lanes, mesh)


def micro(*places: Place, token: int = 1) -> MicroBatch:
    tokens = torch.full((len(places), 4), token)
    positions = torch.tensor([place.position for place in places])
    return MicroBatch({"tokens": tokens}, {}, positions, tokens.numel(), lanes=places)


def step(number: int, begins: bool = False) -> list[Place]:
    """The places of two lanes at a step."""
    return [Place(lane, 2 * number + lane, -1 if begins else 2 * number + lane - 2) for lane in range(2)]


def test_a_row_goes_on_from_the_sample_before_it_in_whatever_micro_batch() -> None:
    found = states()
    first = found.run(adding, micro(*step(0, begins=True)))
    assert first.read.tolist() == [4, 4] and first.sums.shape == (2, 2, 3)
    for place in reversed(step(1)):  # one micro-batch for each lane, the second lane first
        assert found.run(adding, micro(place, token=2)).sums.flatten().tolist() == [12.0] * 6
    again = found.run(adding, micro(*step(2)))
    assert again.read.tolist() == [12, 12] and again.sums.unique().tolist() == [16.0]
    assert not any(one.requires_grad for kept in found._states.values() for one in kept.values())


def test_a_text_that_begins_and_a_jump_have_nothing_before_them() -> None:
    found = states()
    found.run(adding, micro(*step(0, begins=True)))
    mixed = found.run(adding, micro(step(1)[0], step(1, begins=True)[1]))
    assert mixed.read.tolist() == [8, 4]
    assert found.run(adding, micro(*step(7))).read.tolist() == [4, 4]
    other = found.empty()
    assert other.run(adding, micro(*step(8))).read.tolist() == [4, 4]
    assert found.run(adding, micro(*step(8))).read.tolist() == [8, 8]


def test_a_row_that_fills_a_place_leaves_nothing() -> None:
    found = states()
    found.run(adding, micro(step(0, begins=True)[0], Place(-1, -1, -1)))
    assert list(found._states) == [0]


def test_what_is_saved_is_read_back_by_the_same_lanes_only() -> None:
    found = states()
    assert found.saved_tensors(lambda _, one: one) == {}
    for number in range(3):
        found.run(adding, micro(*step(number, begins=not number)))
    kept = {name: one.clone() for name, one in found.saved_tensors(lambda _, one: one).items()}
    assert kept["lanes.position"].tolist() == [4, 5] and kept["lanes.read"].tolist() == [12, 12]
    shapes: Any = {name: (one.shape, one.dtype) for name, one in kept.items()}

    def read(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])

    again = states()
    assert again.load(read, shapes)
    one, other = (each.run(adding, micro(*step(3))) for each in (found, again))
    assert torch.equal(one.sums, other.sums) and torch.equal(one.read, other.read)
    assert not states(4).load(read, shapes) and not states().load(read, {})


def test_a_micro_batch_moves_with_its_places() -> None:
    one = micro(*step(0))
    assert one.to(torch.device("cpu")).lanes == one.lanes and replace(one, length=3).lanes == one.lanes
