"""Ray Tune as the engine of a search (``search=ray``): its searchers choose values, its schedulers end trials early.

Ray runs ``Tuner.fit`` in a thread of the search, on this machine. Each of Ray's trials is an actor that reserves the
trial's resources and does not train (``ray_trial.py``). The search trains the trial, as for any engine, and the actor
asks the search over a socket for each value. So Ray sees results as they come, and its decisions (stop, save, pause, go
on from another trial's checkpoint) are carried out on all ranks of the trial.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ....errors import Problem, UserError
from ....parallel.usable_cores import usable_cores
from ....trainer.component import Component, instantiate, locate
from ..shares import VISIBLE, devices
from ..space import Parameter, Space
from ..study_attributes import OWN, START
from .engine import GO_ON, Engine, Values, Verdict
from .kept_checkpoints import Start, keep_start, remove_starts
from .ray_channel import Begun, RayChannel, RayRun
from .stepped_ranges import fitted, steps

if TYPE_CHECKING:
    from ..prepared import Prepared
    from ..search_config import SearchConfig
    from ..study_store import Claim, StudyStore

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to a server of its own
    "RAY_AUTH_MODE": "disabled",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Variables that keep Ray to this machine and its output to errors."""
SEEDS = ("seed", "random_state", "random_state_seed")
"""Names of seeds in the constructors of searchers."""
ENDING_SECONDS = 20.0
"""Seconds in which Ray's loop may end its actors."""
RANDOM = "ray.tune.search.basic_variant.BasicVariantGenerator"


class RayTune(Engine):
    """Ray Tune.

    Args:
        searcher: what chooses values, such as ``ray.tune.search.optuna.OptunaSearch``; null draws at random.
        scheduler: what ends trials early, such as ``ray.tune.schedulers.ASHAScheduler``; null ends none. In its
            arguments ``time_attr: step`` counts optimizer steps, ``training_iteration`` evaluations.
        cpus: cores that Ray reserves for a trial; null takes one for each rank.
        gpus: GPUs that Ray reserves for a trial; null takes one for each rank where there are GPUs.
    """

    TITLE: ClassVar = "Ray Tune"
    MODULES: ClassVar = ("ray",)
    INSTALL: ClassVar = "pip install 'trireme-train[ray]'"
    PRUNES: ClassVar = "search.engine.scheduler"

    def __init__(
        self,
        searcher: Component | None = None,
        scheduler: Component | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
    ) -> None:
        self.searcher, self.scheduler, self.cpus, self.gpus = searcher, scheduler, cpus, gpus
        self.own: Values | None = None
        """The recipe's own values, until a trial has them."""
        self.found: set[int] = set()
        """Trials that an earlier start has left."""
        self.channel: RayChannel | None = None
        self.loop: threading.Thread | None = None
        """Runs Ray's loop."""
        self.error: BaseException | None = None

    def flaws(self, search: SearchConfig, space: Space | None) -> Iterator[str]:
        for name in ("cpus", "gpus"):
            if (value := getattr(self, name)) is not None and value < 0:
                yield f"engine.{name}={value} is negative; leave it out"
        if self.searcher is not None and self.scheduler is not None and _mutates(self.scheduler):
            why = "cannot go with a scheduler that changes values itself"
            yield f"engine.searcher {why}; leave it out, or choose ray.tune.schedulers.ASHAScheduler"

    def begin_with(self, store: StudyStore, points: Sequence[Mapping[str, Any]], own: Mapping[str, Any] | None) -> None:
        """Ray's searchers are given the first points, so that its schedulers compare them with the others."""

    def open(self, prepared: Prepared, store: StudyStore, jobs: int) -> None:
        super().open(prepared, store, jobs)
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        ray = self.module("ray")
        self.found = set(store.unfinished)
        cores = len(usable_cores())
        try:
            ray.init(
                address="local",
                num_cpus=max(cores, round((self.cpus or prepared.ranks) * jobs)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
            self.channel = RayChannel()
            still = self._still_to_run()
            tuner = self._tuner(still) if still > 0 else None
        except Exception as error:  # Ray, its searchers and schedulers have errors of their own
            why = f"cannot begin: {type(error).__name__}: {error}"
            raise UserError(Problem("search.engine", why, "look at the arguments of its parts")) from error
        if tuner is None:
            self.channel.begun.put(None)
        else:
            self.loop = threading.Thread(target=self._fit, args=(tuner, self.channel), daemon=True)
            self.loop.start()

    def claim(self) -> Claim | None:
        assert self.channel is not None
        begun = self.channel.begun.get()
        claim = None if begun is None or self.left else self._claimed(begun)
        if claim is not None:
            return claim
        self.channel.begun.put(None)  # for the other threads
        if self.error is not None:
            raise self.error
        return None

    def verdict(self, claim: Claim, step: int, value: float) -> Verdict:
        super().verdict(claim, step, value)
        assert self.channel is not None
        run = self.channel.of_trial(claim.number)
        if run is None or step <= run.step:  # a step that was repeated after a kill
            return GO_ON
        run.step = step
        run.results.put({"value": value, "step": step, "done": False})
        return self._decided(run, value, step)

    def ended(self, claim: Claim, values: Sequence[float] | None) -> None:
        assert self.channel is not None
        run = self.channel.of_trial(claim.number)
        if run is None:
            return
        ended = {"value": values[0]} if values else {"error": f"trial {claim.number} has ended without a value"}
        run.results.put({**ended, "step": max(claim.stored, default=run.step), "done": True})
        self.channel.forget(claim.number)

    def leave(self) -> None:
        super().leave()
        if self.channel is not None:
            self.channel.let_go()

    def close(self) -> None:
        self.leave()
        if self.loop is not None:
            self.loop.join(ENDING_SECONDS)
        if self.channel is not None:
            self.channel.close()
        if not (self.store.unfinished or self.error):
            remove_starts(self.prepared.folder)
        self.module("ray").shutdown()

    # -- trials of Ray and of the study ---------------------------------------------------------------------------

    def _claimed(self, begun: Begun) -> Claim | None:
        """The trial of the study that runs for a trial of Ray: an unfinished one that is continued, or a new one."""
        assert self.channel is not None
        space, run, start = self._space(), begun.run, begun.start
        values = {each.name: fitted(each, begun.values[each.name]) for each in space.parameters}
        if start is not None and start.trial in run.numbers[-1:]:
            claim = self._paused(start.trial)
        else:
            claim = self._left(values) if start is None else None
        if claim is None and self.left:
            return None
        if claim is None:
            notes = {START: start.path} if start is not None else {OWN: True} if values == self.own else {}
            self.own = None if OWN in notes else self.own
            with self.store.locked():
                claim = self.store.new(self.space_values, values, notes)
        if begun.devices:
            claim.variables = {VISIBLE: begun.devices}
        run.step = max(claim.stored, default=0 if start is None else start.step)
        self.channel.bind(claim.number, run)
        return claim

    def _left(self, values: Values) -> Claim | None:
        """The trial with these values that an earlier start has left, if there is one."""
        same = [number for number in self.found if self._space().stored(self.store.unfinished[number]) == values]
        with self.store.locked():
            claim = self.store.left(self.space_values, same)
        self.found -= {claim.number} if claim is not None else set()
        return claim

    def _paused(self, number: int) -> Claim | None:
        """A trial that Ray has paused, once its processes have left."""
        while not self.left:
            with self.store.locked():
                if (claim := self.store.left(self.space_values, [number])) is not None:
                    return claim
            time.sleep(0.05)
        return None

    def _decided(self, run: RayRun, value: float, step: int) -> Verdict:
        """Ray's decision on the value that it was told last."""
        save = False
        while True:
            order = run.orders.get()
            if order == "save":
                save = True
                keep_start(self.prepared.folder, Start(run.numbers[-1], step))
            elif order == "stop" and save:
                return Verdict(pause=True)
            elif order == "stop":
                name = (self.scheduler or {}).get("_target_", "Ray").rpartition(".")[2]
                return Verdict(f"{self.prepared.objective.names[0]} {value:.4g} at step {step}, by {name}")
            else:  # it wants the next value, or has gone
                return Verdict(save=save)

    # -- what Ray runs ------------------------------------------------------------------------------------------

    def _tuner(self, trials: int) -> Any:
        from .ray_trial import ends_with, ray_trial

        tune = self.module("ray.tune")
        assert self.channel is not None
        name, mode = next(iter(self.prepared.objective.modes.items()))
        ranks, found = self.prepared.ranks, len(devices())
        gpus = (ranks if found else 0) if self.gpus is None else self.gpus
        reserved = {"CPU": self.cpus or ranks, **({"GPU": gpus} if gpus else {})}
        domains = {each.name: domain(each) for each in self._space().parameters}
        searcher, given = self._searcher(name, mode, domains)
        return tune.Tuner(
            tune.with_resources(ray_trial(self.channel.path, name, gpus > 0), tune.PlacementGroupFactory([reserved])),
            param_space=given,
            tune_config=tune.TuneConfig(
                metric=name,
                mode=mode,
                search_alg=searcher,
                scheduler=self._scheduler(domains),
                num_samples=trials,
                max_concurrent_trials=self.jobs,
                reuse_actors=False,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(self.prepared.folder.absolute() / "ray"),
                verbose=0,
                stop=ends_with(self.channel.path),
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # else a stop would look like a pause
            ),
        )

    def _fit(self, tuner: Any, channel: RayChannel) -> None:
        try:
            tuner.fit()
        except BaseException as error:
            if not self.left:
                why = f"has failed: {type(error).__name__}: {error}"
                self.error = UserError(Problem("search.engine", why, "look at the arguments of its parts"))
        finally:
            channel.begun.put(None)

    def _searcher(self, name: str, mode: str, domains: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The searcher with its seed, first points and the results of earlier trials; and the space for Ray itself,
        which is empty if the searcher has it."""
        from optuna.trial import TrialState  # imported here, since the keys are listed where optuna is not installed

        component = self.searcher or {"_target_": RANDOM}
        # With the seed alone, a search that goes on would draw the values of its first trials again.
        seed = int(np.random.SeedSequence([self.prepared.search.seed, len(self.store.trials)]).generate_state(1)[0])
        wanted = {**dict.fromkeys(SEEDS, seed), "points_to_evaluate": self._first_points()}
        searcher = instantiate(with_known(component, wanted))
        if self.searcher is None:
            return searcher, domains
        if not searcher.set_search_properties(name, mode, domains):
            return searcher, domains
        for trial in self.store.trials:
            if trial.state == TrialState.COMPLETE and hasattr(searcher, "add_evaluated_point"):
                searcher.add_evaluated_point(dict(trial.params), trial.values[0])
        return searcher, {}

    def _scheduler(self, domains: dict[str, Any]) -> Any:
        if self.scheduler is None:
            return None

        parameters = self._space().parameters  # Ray writes the scheduler to a file, so the engine stays out of it

        def explored(config: dict[str, Any]) -> dict[str, Any]:
            return {**config, **{each.name: fitted(each, config[each.name]) for each in parameters}}

        return instantiate(with_known(self.scheduler, {"hyperparam_mutations": domains, "custom_explore_fn": explored}))

    def _first_points(self) -> list[Values]:
        """Points to begin with: those of trials that a killed search has left, or of a new study its first ones."""
        from ..start_search import first_points

        space, left = self._space(), list(self.store.unfinished.values())
        if self.store.trials:
            return [space.stored(values) for values in left]
        points, self.own = first_points(self.prepared)
        return [*([self.own] if self.own else []), *points]

    def _still_to_run(self) -> int:
        """Trials that Ray is to run: without those that have ended, and those that went on from another one's."""
        begun = [trial for trial in self.store.trials if START not in trial.user_attrs]
        return self.prepared.search.trials - len(begun) + len(self.store.unfinished)

    def _space(self) -> Space:
        assert isinstance(self.prepared.space, Space)
        return self.prepared.space


def domain(parameter: Parameter) -> Any:
    """A key's values as a domain of Ray."""
    tune = Engine.module("ray.tune")
    if parameter.choices is not None:
        return tune.choice([parameter.stored(choice) for choice in parameter.choices])
    if parameter.step is not None and not (parameter.whole and parameter.step == 1):
        return tune.choice(steps(parameter))
    low, high = parameter.low, parameter.high
    if parameter.whole:  # Ray leaves the upper end of integers out
        return (tune.lograndint if parameter.log else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if parameter.log else tune.uniform)(low, high)


def with_known(component: Component, known: Mapping[str, Any]) -> Component:
    """A component with those known values that its constructor takes and the recipe leaves out."""
    taken = inspect.signature(locate(component["_target_"])).parameters
    return {**{name: value for name, value in known.items() if name in taken}, **component}


def _mutates(component: Component) -> bool:
    """Whether a scheduler changes values while trials run (population based training)."""
    return "hyperparam_mutations" in inspect.signature(locate(component["_target_"])).parameters
