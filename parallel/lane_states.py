"""Keep a model's recurrent state or memory between training steps, for texts that continue from step to step.

With ``data.packing=lanes`` a long text is cut into as many contiguous parts (lanes) as a step has samples. Sample k of
each step continues the text of sample k in the step before. The rank that reads a lane keeps the model's state for it,
such as the memory of Transformer-XL. Where a text begins, or if a sample does not follow the one that produced the
state, the state is zeros.

A checkpoint stores one tensor of the states of all lanes, in sample order. Every rank writes and reads the states of
its own samples, so a run resumes exactly under another parallelism plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.family import Carried
from .checkpoint_state import tensors_to_write
from .mesh import Mesh
from .micro_batch import MicroBatch, Place
from .strategy import CopyTensor, Read, Shapes

PREFIX = "lanes."
"""Prefix of the names of these tensors in checkpoints."""
POSITION = "position"
"""Name in checkpoints of the position of the last sample that each lane has read."""


class LaneStates:
    """The states of the lanes that this rank reads."""

    def __init__(self, carried: tuple[Carried, ...], config: Any, lanes: int, mesh: Mesh) -> None:
        """
        Args:
            config: the model's configuration, which has the sizes.
            lanes: all lanes, of all data ranks.
        """
        self.carried, self.config, self.lanes, self.mesh = carried, config, lanes, mesh
        self.sizes = {one.name: tuple(int(getattr(config, field)) for field in one.sizes) for one in carried}
        # A memory of no positions has no numbers to save.
        self.saved = {POSITION: ()} | {name: size for name, size in self.sizes.items() if 0 not in size}
        self._states: dict[int, dict[str, Tensor]] = {}
        self._read: dict[int, int] = {}

    def empty(self) -> LaneStates:
        """Empty states of the same kind, for texts that begin."""
        return LaneStates(self.carried, self.config, self.lanes, self.mesh)

    def run(self, model: Any, micro: MicroBatch) -> Any:
        """Run ``model`` on a micro-batch on the device, each row with the state of its lane; keeps the new states."""
        places = micro.lanes
        assert places is not None
        outputs = model(**micro.inputs, **self._before(places, micro.samples.device))
        for row, place in enumerate(places):
            if place.lane >= 0:
                self._states[place.lane] = {one.name: getattr(outputs, one.name)[row].detach() for one in self.carried}
                self._read[place.lane] = place.position
        return outputs

    def _before(self, places: tuple[Place, ...], device: torch.device) -> dict[str, Tensor]:
        """States by name, a row for each place."""
        known = [self._states[place.lane] if self._goes_on(place) else None for place in places]
        found = {}
        for one in self.carried:
            types = [state[one.name].dtype for state in known if state is not None]
            dtype = types[0] if types else torch.int64 if one.whole else torch.float32
            begun = torch.zeros(self.sizes[one.name], dtype=dtype, device=device)
            found[one.name] = torch.stack([begun if state is None else state[one.name].to(dtype) for state in known])
        return found

    def _goes_on(self, place: Place) -> bool:
        return place.follows >= 0 and self._read.get(place.lane, -1) == place.follows

    # -- checkpoints --------------------------------------------------------------------------------------------

    def saved_tensors(self, copy: CopyTensor) -> dict[str, Tensor]:
        """Tensors that this rank writes into a checkpoint; none before the first step. A collective call."""
        order = sorted(self._read, key=lambda lane: self._read[lane])
        if not order:
            return {}
        mine = {POSITION: torch.tensor([self._read[lane] for lane in order], device=self.mesh.device)}
        for one in self.carried:
            if one.name in self.saved:
                rows = torch.stack([self._states[lane][one.name] for lane in order])
                mine[one.name] = rows if one.whole else rows.float()
        return tensors_to_write(self._of_all(mine), self.mesh, copy)

    def load(self, read: Read, shapes: Shapes) -> bool:
        """Load the states of a checkpoint, or begin with none; a collective call.

        Returns:
            Whether the checkpoint has states of these lanes.
        """
        self._states, self._read = {}, {}
        whole = {POSITION, *(one.name for one in self.carried if one.whole)}
        mine, device = {}, self.mesh.device
        for name, size in self.saved.items():
            if PREFIX + name not in shapes or shapes[PREFIX + name][0] != torch.Size((self.lanes, *size)):
                return False
            dtype = torch.int64 if name in whole else torch.float32
            mine[name] = torch.zeros((self.lanes // self.mesh.data_size, *size), dtype=dtype, device=device)
        read(self._of_all(mine))
        for row, position in enumerate(mine[POSITION].tolist()):
            lane = position % self.lanes
            self._read[lane] = position
            empty = {name: torch.zeros(size, device=device) for name, size in self.sizes.items() if name not in mine}
            self._states[lane] = {name: mine[name][row] for name in self.sizes if name in mine} | empty
        return True

    def _of_all(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows as parts of the tensors of all lanes, by their names in checkpoints."""
        if self.mesh.axes is None:
            return {PREFIX + name: rows for name, rows in mine.items()}
        from torch.distributed.tensor import DTensor, Shard

        axes = self.mesh.axes["replicate", "shard"]
        return {
            PREFIX + name: DTensor.from_local(rows, axes, [Shard(0), Shard(0)], run_check=False)
            for name, rows in mine.items()
        }
