"""Give each trial of a search an optuna sampler of its own, seeded by the search's seed and the trial's number, so that
a search that is resumed or has several workers does not repeat values.

optuna's own samplers draw from one stream of random numbers. A study that is resumed after a kill would begin the
stream anew and try the same values again, and so would a second worker. Here each trial has its own sampler, seeded by
the trial's number. This works because a sampler learns from the trials in the study's storage.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler

from ...trainer.component import instantiate, locate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

ONE_SEQUENCE = ("optuna.samplers.QMCSampler",)
"""Samplers that draw one sequence, whose position the study stores: all trials need the same seed."""
DEFAULT = {"_target_": "optuna.samplers.TPESampler"}
DEFAULT_OF_SEVERAL = {"_target_": "optuna.samplers.NSGAIISampler"}
EXHAUSTED = "trireme:exhausted"
"""Attribute of a study whose sampler has tried every point."""


class SeededByTrial(BaseSampler):
    """Hands each trial to a sampler of its own.

    Args:
        component: the sampler as the recipe writes it.
        seed: that of the search.
    """

    def __init__(self, component: dict[str, Any], seed: int) -> None:
        self.component, self.seed = component, seed
        self._by_trial: dict[int, BaseSampler] = {}
        self.of_number(0)  # refuses wrong arguments now

    def of_number(self, number: int) -> BaseSampler:
        """The sampler of a trial."""
        if number not in self._by_trial:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # optuna warns of what it calls experimental
                self._by_trial[number] = instantiate(seeded(self.component, self.seed, number))
        return self._by_trial[number]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.of_number(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self.of_number(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.of_number(trial.number).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.of_number(trial.number).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        try:
            self.of_number(trial.number).after_trial(study, trial, state, values)
        except RuntimeError as error:  # samplers that try every point stop optuna's own loop
            if "Study.stop" not in str(error):
                raise
            study.set_user_attr(EXHAUSTED, True)
        self._by_trial.pop(trial.number, None)

    def reseed_rng(self) -> None:
        """Keep the seeds: they are those of the trials."""


def build_sampler(component: dict[str, Any] | None, seed: int, objectives: int) -> BaseSampler:
    """The sampler of a recipe, or optuna's default for so many objectives."""
    usual = DEFAULT if objectives == 1 else DEFAULT_OF_SEVERAL
    return SeededByTrial(component or usual, seed)


def seeded(component: dict[str, Any], seed: int, number: int) -> dict[str, Any]:
    """The component, and samplers inside of it, with seeds of this trial."""
    made = copy.deepcopy(component)
    for node in _samplers(made):
        target = locate(node["_target_"])
        if "seed" not in inspect.signature(target).parameters:
            continue
        base = [seed, node["seed"]] if isinstance(node.get("seed"), int) else [seed]
        step = [] if node["_target_"] in ONE_SEQUENCE else [number]
        node["seed"] = int(np.random.SeedSequence([*base, *step]).generate_state(1)[0])
    return made


def _samplers(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        inside = [found for value in node.values() for found in _samplers(value)]
        return [node, *inside] if "_target_" in node else inside
    return [found for value in node for found in _samplers(value)] if isinstance(node, list) else []


def random_trials(count: int) -> Iterator[Trial]:
    """Random trials of a study in memory."""
    import optuna

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(count):
        yield study.ask()
