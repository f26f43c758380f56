"""PyTorch data sets that read from a user's own data loader (``data.loader``): training samples, by position or one
after the other, and held-out samples, by index.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import Dataset

from ...errors import UserError
from ..component_errors import component_errors
from .base_collator import Sample
from .open_samples import same_values
from .own_loader import LOADER, checked, wrong_loader


class PositionedSamples(Dataset[Sample]):
    """The samples of a loader by position."""

    def __init__(self, loader: Any) -> None:
        self.loader, self._checked = loader, False

    def __getitem__(self, position: int) -> Sample:
        with component_errors(LOADER, self.loader, "sample"):
            sample = self.loader.sample(position)
        if not self._checked:
            self._checked = True
            checked(sample, self.loader, "sample(position)")
            with component_errors(LOADER, self.loader, "sample"):
                again = self.loader.sample(position)
            if other := [key for key in sample if not same_values(sample[key], again.get(key))]:
                why = f"gives another {' and '.join(other)} when sample({position}) is called again"
                raise UserError(wrong_loader(self.loader, f"{why}; draw from (seed, position), or in the collator"))
        return {**sample, "index": position}


class HeldOutSamples(Dataset[Sample]):
    """The held-out samples of a loader by index."""

    def __init__(self, loader: Any) -> None:
        samples = getattr(loader, "held_out", None)
        with component_errors(LOADER, loader, "held_out"):
            samples = () if samples is None else samples
            known = hasattr(samples, "__len__") and hasattr(samples, "__getitem__")
            self.samples: Any = samples if known else list(samples)
        self.loader = loader

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        with component_errors(LOADER, self.loader, "held_out"):
            sample = self.samples[index]
        checked(sample, self.loader, "held_out")
        return {**sample, "index": index}


class SamplesInOrder(Iterator[Sample]):
    """Endless samples of a loader in order: pass after pass."""

    def __init__(self, loader: Any, state: Mapping[str, Any], samples: int) -> None:
        """
        Args:
            state: what ``state`` gave at an earlier position; empty if none is known.
            samples: position to begin at, over all passes.
        """
        self.loader, self.number, self.taken, self.position = loader, 0, 0, 0
        saved = state.get("loader")
        if state.get("position", samples + 1) <= samples and saved is not None and hasattr(loader, "load_state_dict"):
            self.number, self.taken, self.position = state["pass"], state["taken"], state["position"]
            with component_errors(LOADER, loader, "load_state_dict"):
                loader.load_state_dict(saved)
        elif (size := getattr(loader, "size", None)) is not None:
            self.number = samples // size
            self.position = self.number * size
        self._samples = self._begin()
        self.read_again = samples - self.position
        """Samples that are read once more, up to the position."""
        for _ in range(self.read_again):
            next(self)

    def __next__(self) -> Sample:
        with component_errors(LOADER, self.loader, "__iter__"):
            sample = next(self._samples, None)
        if sample is None:
            self._end()
            with component_errors(LOADER, self.loader, "__iter__"):
                sample = next(self._samples, None)
        if not self.position:
            checked(sample, self.loader, "__iter__")
        self.taken, self.position = self.taken + 1, self.position + 1
        return {**sample, "index": self.position - 1}  # type: ignore[dict-item]

    def state(self) -> dict[str, Any]:
        """Position of the next sample, as JSON."""
        found: dict[str, Any] = {"pass": self.number, "taken": self.taken, "position": self.position}
        if not hasattr(self.loader, "state_dict"):
            return found
        with component_errors(LOADER, self.loader, "state_dict"):
            found["loader"] = self.loader.state_dict()
        try:
            json.dumps(found)
        except (TypeError, ValueError) as error:
            why = f"gives a state_dict that JSON cannot hold: {error}"
            raise UserError(wrong_loader(self.loader, f"{why}; give numbers, texts, lists and dicts")) from None
        return found

    def _begin(self) -> Iterator[Sample]:
        with component_errors(LOADER, self.loader, "__iter__"):
            if callable(getattr(self.loader, "set_epoch", None)):
                self.loader.set_epoch(self.number)
            return iter(self.loader)

    def _end(self) -> None:
        """Begin the next pass."""
        size = getattr(self.loader, "size", None)
        if not self.taken:
            raise UserError(wrong_loader(self.loader, "gives no sample in a whole pass"))
        if size is not None and self.taken != size:
            why = f"gives {self.taken} samples in pass {self.number + 1}, but its size is {size}"
            raise UserError(wrong_loader(self.loader, f"{why}; set the right size, or None if passes differ"))
        self.number, self.taken = self.number + 1, 0
        self._samples = self._begin()
