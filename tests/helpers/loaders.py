"""Data loaders and sample orders for tests, which name them in recipes by ``_target_``. The loaders give made-up token
sequences; one loader and one order contain a mistake on purpose.
"""

from __future__ import annotations

import numpy as np
from trireme.models.facts import Facts
from trireme.models.vocabulary import Vocabulary

SIZE, LENGTH, WORDS = 24, 16, 64


def text(number: int) -> dict:
    """A text of evenly spaced tokens; start and spacing depend on ``number``."""
    step = 1 + number % 3
    return {"input_ids": (np.arange(LENGTH, dtype=np.int64) * step + number) % WORDS}


class Numbers:
    """Base of the loaders below."""

    facts = Facts(Vocabulary(WORDS, None, None, 0))

    def __init__(self, seed: int, size: int | None = SIZE) -> None:
        self.seed, self.size = seed, size
        self.held_out = [text(1000 + number) for number in range(5)]

    def fingerprint(self) -> str:
        return "numbers"

    def order(self, number: int) -> list[int]:
        """Indices of the texts in epoch ``number``, in an order that is the same for all loaders."""
        return np.random.default_rng([self.seed, number]).permutation(SIZE).tolist()


class ByPosition(Numbers):
    def sample(self, position: int) -> dict:
        number, place = divmod(position, SIZE)
        return text(self.order(number)[place])


class InOrder(Numbers):
    """A loader without a state: a resume reads the epoch again from its beginning."""

    number = 0

    def set_epoch(self, number: int) -> None:
        self.number = number

    def __iter__(self):
        for index in self.order(self.number):
            yield text(index)


class WithState(InOrder):
    """A loader with a state, from which a resume goes on; counts the texts that it has given."""

    done = reads = 0

    def __iter__(self):
        order = self.order(self.number)
        while self.done < len(order):
            self.done += 1
            type(self).reads += 1
            yield text(order[self.done - 1])
        self.done = 0

    def state_dict(self) -> dict:
        return {"done": self.done}

    def load_state_dict(self, state: dict) -> None:
        self.done = state["done"]


class Changing(ByPosition):
    """A common mistake: samples are drawn from a generator, so the same position gives another sample next time."""

    draws = np.random.default_rng(0)

    def sample(self, position: int) -> dict:
        return text(int(self.draws.integers(1000)))


class Backwards:
    """An order: the last sample first."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, positions):
        return self.size - 1 - positions % self.size


class Beyond(Backwards):
    def __call__(self, positions):
        return positions
