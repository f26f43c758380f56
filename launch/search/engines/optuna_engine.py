"""optuna as the engine of a search (``search=optuna``): a sampler of optuna chooses values, and a pruner of optuna ends
trials early.

Every engine's trials are stored in an optuna study. With this engine, optuna also chooses their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .engine import GO_ON, Engine, Verdict

if TYPE_CHECKING:
    from ..study_store import Claim


class Optuna(Engine):
    """Values by ``search.sampler``, verdicts by ``search.pruner``."""

    TITLE: ClassVar = "optuna"
    OF_OPTUNA: ClassVar = True
    MOST_OBJECTIVES: ClassVar = 1000
    SHARED: ClassVar = True

    def claim(self) -> Claim | None:
        return self.store.claim(self.space_values)

    def verdict(self, claim: Claim, step: int, value: float) -> Verdict:
        if not self.store.report(claim, step, value):
            return GO_ON
        return Verdict(f"{self.prepared.objective.names[0]} {value:.4g} at step {step}")
