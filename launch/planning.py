"""For a recipe with ``plan=auto``, choose a parallelism plan before the run starts. Also compare all plans for
``trireme plans``.

Every plan of ``configs/plan`` is combined with the plan options of the recipe (``plan.precision=bf16``) and checked,
and its memory and communication are estimated (``parallel/planner.py``). The choice becomes overrides, such as
``plan=dp_tp plan.tensor=4``, so that ranks and the run folder get the chosen plan by name. Under a launcher, every rank
chooses by itself, from the recipe, WORLD_SIZE, LOCAL_WORLD_SIZE and the sizes of memory. These are the same on nodes of
one kind, so all ranks choose the same plan.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import Problem, UserError
from .compose import compose
from .compose_plan import compose_plan, dotted, options_of_file
from .composed import Composed
from .elastic import launched
from .listing import show_verdicts

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from ..parallel.memory import ModelSizes, Step
    from ..parallel.plan import Degrees, Plan
    from ..parallel.planner import Assessed, Candidate, Decision, Machine
    from ..trainer.settings import TrainerConfig

AUTO = "auto"
T = TypeVar("T")
ENGINES = {"fsdp": "fsdp", "deepspeed": "deepspeed", "ddp": "ddp"}
"""Groups of options that belong to one engine -> its value of ``data_parallel``."""


def planned(composed: Composed, nproc: int | None, show: bool = True) -> Composed:
    """The recipe with the planner's choice in place of ``plan=auto``; unchanged if it names a plan.

    Args:
        show: print the comparison and the choice, on rank 0.

    Raises:
        UserError: the recipe has problems, or no plan fits.
    """
    if composed.raw["plan"].get("name") != AUTO:
        return composed
    from .elastic import choose_world_size

    own = own_options(composed)
    recipe = without_plan(composed, own)
    ranks = choose_world_size(recipe.plan, nproc)
    planner = Planner(recipe, own)
    machine = this_machine(ranks)
    decision = planner.decide(machine)
    if show and os.environ.get("RANK", "0") == "0":
        show_decision(decision, machine)
    if decision.chosen is None:
        raise UserError(planner.nothing_fits(decision, machine))
    candidate = decision.chosen.candidate
    plan = compose_plan(candidate.plan.name, {**own, **candidate.changes})
    kept = [text for text in composed.overrides if text.partition("=")[0].lstrip("+") != "plan"]
    degrees = [f"plan.{axis}={size}" for axis, size in candidate.changes.items()]
    overrides = [*kept, f"plan={candidate.plan.name}", *degrees]
    return replace(composed, raw={**composed.raw, "plan": plan}, overrides=overrides)


def fixed_overrides(options: argparse.Namespace, *changes: str) -> list[str]:
    """Overrides for a command that starts several runs, with ``auto`` replaced by one plan, chosen with ``changes``."""
    composed = compose(options.recipe, [*options.overrides, *changes], options.recipe_dir)
    return options.overrides if composed.raw["plan"].get("name") != AUTO else planned(composed, options.nproc).overrides


def compare_plans(options: argparse.Namespace) -> None:
    """Print the planner's judgement of every plan for a recipe, whatever plan the recipe names.

    Raises:
        UserError: the recipe has problems, or no plan fits.
    """
    overrides = [text for text in options.overrides if not text.startswith("plan=")]
    planned(compose(options.recipe, [*overrides, f"plan={AUTO}"], options.recipe_dir), options.nproc)


def own_options(composed: Composed) -> dict[str, Any]:
    """The recipe's own options of the plan by dotted key: those that differ from ``auto``'s defaults or were given."""
    defaults, given = dotted(compose_plan(AUTO)), dotted(composed.raw["plan"])
    named = {text.lstrip("+").partition("=")[0].removeprefix("plan.") for text in composed.overrides if "plan." in text}
    return {
        key: value
        for key, value in given.items()
        if key != "name" and (key not in defaults or value != defaults[key] or key in named)
    }


def show_decision(decision: Decision, machine: Machine) -> None:
    """Print a table of all plans, then the choice in one line."""
    from ..parallel.planner import gibibytes, reason

    def row(one: Assessed, verdict: str) -> tuple[str, str, str, str]:
        memory = gibibytes(one.memory.total) if one.memory else ""
        return one.candidate.name, memory, gibibytes(one.traffic) if one.memory else "", verdict

    chosen = decision.chosen
    rows = [row(chosen, "chosen")] if chosen else []
    show_verdicts(
        ("plan", "memory per rank", "sent per step"), [*rows, *(row(one, one.verdict) for one in decision.others)]
    )
    if chosen:
        processes = f"{machine.ranks} process{'es' if machine.ranks > 1 else ''}"
        print(f"plan {chosen.candidate.name} on {processes}: {reason(chosen, machine)}", flush=True)


@dataclass
class Planner:
    """Makes and judges candidate plans for one recipe."""

    recipe: RecipeConfig
    """The typed recipe; its plan is ignored."""
    own: dict[str, Any]
    """The recipe's own options of the plan (``own_options``)."""
    sizes: ModelSizes = field(init=False)

    def __post_init__(self) -> None:
        from ..models.build_model import build_on_meta
        from ..models.facts import Facts
        from ..models.other_families import described
        from ..parallel.memory import model_sizes
        from ..trainer.saved_model import model_of_run
        from ..trainer.tasks.task import head_of

        model = model_of_run(self.recipe.model, self.recipe.run.dir)
        built = build_on_meta(model, head_of(self.recipe.task), Facts())
        self.config, self.family = built.config, described(model.spec, built)
        self.sizes = model_sizes(built, self.family)

    def decide(self, machine: Machine) -> Decision:
        from ..parallel.planner import choose

        def step(degrees: Degrees) -> Step:
            return self.step(degrees, machine.accelerator)

        return choose(list(self.candidates(machine)), self.sizes, step, machine, self._late_flaw)

    def step(self, degrees: Degrees, accelerator: bool) -> Step:
        from ..parallel.memory import Step, keeps_scores, state_bytes

        trainer = self.recipe.trainer
        return Step(
            micro_batch=trainer.micro_batch_size,
            length=self._positions(),
            micro_batches=max(trainer.global_batch_size // (trainer.micro_batch_size * degrees.data), 1),
            state_bytes=state_bytes(self.recipe.optimizer, self.recipe.ema is not None),
            eager=keeps_scores(self.recipe.model.kernel, self.sizes, accelerator),
            loss=self.recipe.model.loss,
        )

    def _positions(self) -> int:
        """Positions of a sample that go through the blocks."""
        length, latents = self.recipe.data.length, self.family.latents(self.config)
        return length if latents is None else min(length, latents)

    def candidates(self, machine: Machine) -> Iterator[Candidate]:
        """Every plan with every sensible degree; a candidate that cannot run carries the reason."""
        from ..parallel.plan import Degrees, Plan
        from ..parallel.planner import RUNGS, Candidate, degree_choices, no_degrees

        none = Degrees()
        for rung, (_, names) in enumerate(RUNGS):
            for name in names:
                choices = list(degree_choices(name, machine))
                if not choices:
                    yield Candidate(Plan(name=name), none, {}, rung, no_degrees(name, machine))
                for changes in choices:
                    yield self._candidate(name, changes, rung, machine)

    def nothing_fits(self, decision: Decision, machine: Machine) -> Problem:
        """The problem if no plan fits: the need of the smallest, and changes that would make one fit."""
        from ..parallel.planner import USABLE, gibibytes

        smallest = decision.smallest
        if smallest is None or smallest.memory is None:
            why = f"finds no plan that can run this recipe on {machine.ranks} processes: the table says why"
            return Problem("plan", why, "change what the table names, or --nproc", AUTO)
        needs = f"{smallest.candidate.name} needs {gibibytes(smallest.memory.total)}"
        why = f"finds no plan that fits into {gibibytes(USABLE * machine.memory)} per rank; the smallest, {needs}"
        fixes = list(self._remedies(machine))
        fix = (
            f"any of these would fit: {'; '.join(fixes)}"
            if fixes
            else "use a smaller model, or more and larger devices"
        )
        return Problem("plan", why, fix, AUTO)

    def _remedies(self, machine: Machine) -> Iterator[str]:
        """Single changes that make a plan fit; two changes together only if neither is enough."""
        trainer, full = self.recipe.trainer, {**self.own, "recompute": "full"}
        one = replace(trainer, micro_batch_size=1)
        recompute = self.own.get("recompute", "none") == "none"
        smaller = trainer.micro_batch_size > 1
        names = {"plan.recompute=full": recompute, "trainer.micro_batch_size=1": smaller}
        found = [
            name
            for (name, useful), changes in zip(names.items(), ((trainer, full), (one, self.own)), strict=True)
            if useful and self._fits(*changes, machine)
        ]
        yield from found
        if not found and recompute and smaller and self._fits(one, full, machine):
            yield " with ".join(names)
        for times in (2, 4, 8, 16, 32):
            more = replace(machine, ranks=machine.ranks * times)
            batch = replace(trainer, global_batch_size=trainer.global_batch_size * times)
            if self._fits(batch, self.own, more):
                yield f"{more.ranks} ranks"
                return

    def _fits(self, trainer: TrainerConfig, own: dict[str, Any], machine: Machine) -> bool:
        other = copy.copy(self)
        other.recipe, other.own = replace(self.recipe, trainer=trainer), own
        return other.decide(machine).chosen is not None

    def _candidate(self, name: str, changes: dict[str, int], rung: int, machine: Machine) -> Candidate:
        from ..configs.validate import read
        from ..parallel.plan import Degrees, Plan
        from ..parallel.planner import Candidate

        def flawed(why: str) -> Candidate:
            return Candidate(Plan(name=name), Degrees(), changes, rung, why)

        if against := _contradiction(name, self.own, changes):
            return flawed(against)
        plan, problems = read(compose_plan(name, {**self.own, **changes}), Plan)
        if plan is None:
            return flawed(f"{problems[0].field} {problems[0].why}")
        try:
            degrees = plan.degrees(machine.ranks)
        except ValueError as error:
            return flawed(str(error))
        return Candidate(plan, degrees, changes, rung, self._flaw(plan, degrees))

    def _flaw(self, plan: Plan, degrees: Degrees) -> str:
        from ..parallel.zero.library import installed

        trainer = self.recipe.trainer
        if trainer.global_batch_size % (trainer.micro_batch_size * degrees.data):
            unit = f"{trainer.micro_batch_size} x {degrees.data} data ranks"
            return f"trainer.global_batch_size={trainer.global_batch_size} is not a multiple of {unit}"
        if plan.uses_deepspeed:  # fully checked only before it is chosen (_late_flaw), since importing takes seconds
            return "" if installed() else "needs deepspeed, which is not installed"
        return self._problem(plan, degrees)

    def _late_flaw(self, candidate: Candidate) -> str:
        return self._problem(candidate.plan, candidate.degrees) if candidate.plan.uses_deepspeed else ""

    def _problem(self, plan: Plan, degrees: Degrees) -> str:
        from ..parallel.check_plan import check_plan
        from ..parallel.check_quantised import check_quantised
        from ..trainer.collect_recipe_values import recipe_values

        recipe = self.recipe
        values = recipe_values(recipe.trainer, recipe.optimizer, recipe.scheduler, recipe.ema, self.config, recipe.data)
        problems = check_quantised(plan, degrees, recipe.model.quantization, recipe.model.qat)
        problems += check_plan(plan, degrees, self.family, self.config, values)
        return f"{problems[0].field} {problems[0].why}" if problems else ""


def this_machine(ranks: int) -> Machine:
    """This machine with its memory per rank: that of the smallest device, divided among the ranks that share it."""
    import torch

    from ..parallel.planner import Machine

    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", ranks)) if launched() else ranks
    host = host_memory() / per_node
    count = torch.cuda.device_count()
    if count == 0:
        return Machine(ranks, per_node, host, host, accelerator=False)
    devices = _gpu_memory() if torch.cuda.is_initialized() else in_a_fork(_gpu_memory)
    sharers = 1 if launched() and count == 1 else ceil(per_node / count)  # a launched rank with one GPU has it alone
    return Machine(ranks, per_node, min(devices) / sharers, host)


def _gpu_memory() -> list[int]:
    """Bytes of each GPU. Asking initialises the driver, which holds GPU memory until the process ends, and after which
    a notebook cannot fork its ranks."""
    import torch

    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


def in_a_fork(function: Callable[[], T]) -> T:
    """Call ``function`` in a forked process that ends afterwards; returns its result or raises its exception."""
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as fork:
        return fork.submit(function).result()


def host_memory() -> int:
    """Bytes of memory that processes here may use. Free memory is not considered, since all ranks must agree."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def without_plan(composed: Composed, own: dict[str, Any]) -> RecipeConfig:
    """The typed recipe with a stand-in plan that has its general options, so that its problems show before planning."""
    from ..configs.schema import read_recipe
    from ..parallel.plan import AXES

    problems = []
    if isinstance(own.get("deepspeed"), str):
        why = "cannot be combined with plan.deepspeed=FILE, which says itself what DeepSpeed shards"
        problems.append(Problem("plan", why, "write plan=zero2 (or another stage) instead", AUTO))
    general = {key: value for key, value in own.items() if key not in (*AXES, "data_parallel", "sequence_parallel")}
    general.pop("deepspeed", None)
    plan = compose_plan(AUTO, {**general, "data_parallel": "fsdp"})
    recipe, found = read_recipe({**composed.raw, "plan": plan}, lambda plan: 1)
    problems += composed.with_problems_of_values(found)
    if problems or recipe is None:
        raise UserError(*problems)
    return recipe


def _contradiction(name: str, own: dict[str, Any], changes: dict[str, int]) -> str:
    """The first of the recipe's own options that a plan contradicts or would ignore; empty if there is none."""
    from ..parallel.plan import AXES

    itself = {**options_of_file(name), **changes}
    full = dotted(compose_plan(name, changes))
    for key, value in own.items():
        fixed = key in itself or key in (*AXES, "data_parallel")
        if fixed and full.get(key) not in (value, "auto"):
            return f"contradicts plan.{key}={value}"
        group = key.partition(".")[0]
        if group in ENGINES and full["data_parallel"] != ENGINES[group]:
            return f"ignores plan.{key}"
        if group == "pipelining" and full["pipeline"] == 1:
            return f"ignores plan.{key}"
    return ""
