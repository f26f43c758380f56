"""Save a run under one parallelism plan, resume it under another, and compare it with an uninterrupted run.

``make resume-matrix`` runs all pairs, prints the table and writes ``docs/resume.md``; ``test_matrix.py`` runs some of
them. The model is GPT-2, since its tensors are the hardest to save: its head is tied to the embedding, which a pipeline
holds twice, and its fused projections are split by tensor parallelism.

Each plan trains once to the end, with a checkpoint half way. Then, for each plan, one group of ranks loads the
checkpoints of the other plans in turn. It saves at once what it has loaded, trains to the end, and records the samples
that it consumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.recipes import TINY, composed_of, typed, with_few_files
from parity.matrix import LAYOUTS, noise_of
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.checkpoint.layout import STATE, step_folder
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint
from trireme.trainer.collective import on_main
from trireme.trainer.loop import Trainer
from trireme.trainer.run_folder import open_run_folder

if TYPE_CHECKING:
    from trireme.launch.composed import Composed

PLANS = (
    "single",
    "ddp",
    "zero1",
    "tp",
    "zero3",
    "pp_1f1b",
    "zero2_offload",
    "3d",
    "fsdp_full_shard",
    "fsdp_hybrid_shard",
)
"""Plans of the full matrix. In the shorter ring, each plan resumes the checkpoint of the plan before it."""
RELATED = ("zero2", "tp_sp", "fsdp_shard_grad_op", "pp_interleaved", "pp_zero_bubble", "dp_pp", "3d_zero1")
"""Plans that place state in other ways than ``PLANS``; they form a second ring."""
ADAPTED = ("ddp", "tp", "zero3", "pp_1f1b", "zero2", "3d", "fsdp_full_shard")
"""Plans under which runs with adapters are resumed."""
MODELS = {
    "": ("model=gpt2_tiny",),
    "lora": ("model=llama_tiny", "adapter=lora", "model.adapter.rank=4"),
    "dora": ("model=gpt2_tiny", "adapter=dora", "model.adapter.rank=4", "model.adapter.modules_to_save=[wte]"),
    "perceiver_ar": ("model=perceiver_ar_tiny",),
    "transformer_xl": ("model=transformer_xl_tiny", "data.packing=lanes"),
    "noise": ("model=gpt2_tiny", *noise_of("gpt2")),
    "nf4": ("model=llama_tiny", "quantization=nf4", "adapter=lora", "model.adapter.rank=4"),
}
"""Overrides by variant: all weights are trained, with noise or without, or adapters on frozen weights, which may have
4 bits."""
BATCHES = (8, 32)
"""Other global batches to resume with."""
TOLERANCE = 1e-4
STEPS, SAVED, GLOBAL_BATCH = 8, 4, 16
AVERAGE = "+ema.decay=0.9"
CONSUMED = "samples.json"
"""Dataset indices of every step of a run, in order; written last."""


@dataclass(frozen=True)
class Case:
    """One resume."""

    before: str
    after: str
    batch: int = GLOBAL_BATCH
    """Global batch after the resume."""
    variant: str = ""
    """One of ``MODELS``."""

    @property
    def name(self) -> str:
        batch = f"-{self.batch}" if self.batch != GLOBAL_BATCH else ""
        return f"{self.before}-{self.after}{batch}" + (f"-{self.variant}" if self.variant else "")


@dataclass
class Found:
    """The result of a resume."""

    differing: list[str] = field(default_factory=list)
    """Tensors that are not bit for bit those of the checkpoint, saved again right after the load."""
    state: bool = False
    """Progress, callbacks and loss scale are those of the checkpoint."""
    samples: bool = False
    """The samples after the resume are those of an uninterrupted run on one process, in the same order."""
    difference: float = float("nan")
    """Largest relative difference of losses and norms from that run; 0 if the batch size differs."""
    exact: bool | None = None
    """Metrics and final tensors equal those of the uninterrupted run bit for bit; None if the two plans differ."""
    error: str = ""
    """What went wrong before anything could be compared."""

    @property
    def sound(self) -> bool:
        good = not self.error and not self.differing and self.state and self.samples and self.exact is not False
        return good and self.difference < TOLERANCE


def ring(plans: Sequence[str], variant: str = "") -> dict[str, list[Case]]:
    """Cases by the plan that resumes: from its neighbour's checkpoint, also with another batch, and from its own."""
    before = dict(zip(plans, [plans[-1], *plans[:-1]], strict=True))
    batches = (GLOBAL_BATCH, BATCHES[0])
    return {
        plan: [*(Case(before[plan], plan, batch, variant) for batch in batches), Case(plan, plan, variant=variant)]
        for plan in plans
    }


def adapted(variant: str) -> dict[str, list[Case]]:
    """Cases by the plan that resumes: from the checkpoints of all plans of the rows with adapters."""
    return {plan: [Case(before, plan, variant=variant) for before in ADAPTED] for plan in ADAPTED}


def full() -> dict[str, list[Case]]:
    """Cases by the plan that resumes: from all plans' checkpoints, and from its neighbour's with other batches."""
    cases = {plan: [Case(before, plan) for before in PLANS] for plan in PLANS}
    for plan, near in ring(PLANS).items():
        cases[plan] += [Case(near[0].before, plan, batch) for batch in BATCHES]
    return cases


def uninterrupted(folder: Path, plan: str, variant: str = "") -> Path:
    """The whole run under ``plan``, with a checkpoint half way; run once and kept in ``folder``."""
    run_dir = folder / (f"{plan}-{variant}" if variant else plan)
    if not (run_dir / "done").exists():
        _on_ranks(plan, [(None, run_dir, _overrides(plan, _averages(plan), variant))])
        (run_dir / "done").touch()
    return run_dir


def resumed(folder: Path, after: str, cases: Sequence[Case]) -> dict[str, Found]:
    """Resume ``cases``, all under ``after`` and of one variant, in one group of ranks; returns results by case name.
    Results that ``folder`` has are kept."""
    one = uninterrupted(folder, "single", cases[0].variant)
    jobs, found = [], {}
    for case in cases:
        if (folder / case.name / CONSUMED).exists():
            continue
        shutil.rmtree(folder / case.name, ignore_errors=True)
        saved = step_folder(uninterrupted(folder, case.before, case.variant) / "checkpoints", SAVED)
        averaged = _averages(case.before) and _averages(after)
        overrides = [*_overrides(after, averaged, case.variant), f"trainer.global_batch_size={case.batch}"]
        jobs.append((saved, folder / case.name, overrides))
    error = ""
    try:
        if jobs:
            _on_ranks(after, jobs)
    except AssertionError as failure:
        error = str(failure)
    for case in cases:
        run_dir = folder / case.name
        if (run_dir / CONSUMED).exists():
            found[case.name] = _judge(case, run_dir, uninterrupted(folder, case.before, case.variant), one)
        elif error:
            found[case.name] = Found(error=error)
            break  # the ones after it have not been tried
    return found


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name, joined from the parts of all ranks."""
    source = Checkpoint(checkpoint)
    wholes = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in source.shapes.items()}
    source.read(wholes)
    return wholes


def _judge(case: Case, run_dir: Path, before: Path, one: Path) -> Found:
    saved, again = (step_folder(path / "checkpoints", SAVED) for path in (before, run_dir))
    averaged = _averages(case.before) and _averages(case.after)
    found = Found(_differing(saved, again, averaged))
    found.state = _state_is_kept(saved, again, case.batch)
    stream = [index for step in json.loads((one / "stream.json").read_text()) for index in step]
    consumed = [index for step in json.loads((run_dir / CONSUMED).read_text()) for index in step]
    first = SAVED * GLOBAL_BATCH
    found.samples = consumed == stream[first : first + (STEPS - SAVED) * case.batch]
    found.difference = 0.0
    if case.batch == GLOBAL_BATCH:
        found.difference = worst_difference(training(one)[SAVED:], training(run_dir))
    if case.before == case.after and case.batch == GLOBAL_BATCH:
        final, wanted = (step_folder(path / "checkpoints", STEPS) for path in (run_dir, before))
        same_lines = training(run_dir) == training(before)[SAVED:]
        found.exact = same_lines and not _differing(wanted, final, averaged)
    return found


def _state_is_kept(saved: Path, again: Path, batch: int) -> bool:
    """Whether the saved state is kept; a new batch size is recorded in it, with the step at which it begins."""
    then, now = (json.loads((checkpoint / STATE).read_text()) for checkpoint in (saved, again))
    if batch != GLOBAL_BATCH:
        then["trainer"]["batch"] = {"size": batch, "step": SAVED, "samples": SAVED * GLOBAL_BATCH}
    return json.dumps(then) == json.dumps(now)


def _differing(one: Path, other: Path, averaged: bool) -> list[str]:
    """Names whose tensors are not equal bit for bit; averages only count where both runs keep them."""
    kept = [
        {name: value for name, value in tensors(path).items() if averaged or not name.startswith("ema.")}
        for path in (one, other)
    ]
    return sorted(
        name for name in {*kept[0], *kept[1]} if not all(name in side for side in kept) or not _equal(name, *kept)
    )


def _equal(name: str, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one[name].dtype == other[name].dtype and torch.equal(one[name], other[name])


def _averages(plan: str) -> bool:
    """Whether the plan keeps an average of the weights, which DeepSpeed's plans do not."""
    return not plan.startswith("zero")


def _overrides(plan: str, averaged: bool, variant: str) -> list[str]:
    return [
        f"plan={plan}",
        *MODELS[variant],
        "scheduler=cosine",
        f"trainer.max_steps={STEPS}",
        f"trainer.global_batch_size={GLOBAL_BATCH}",
        "trainer.micro_batch_size=2",
        "trainer.eval_at_end=false",
        f"checkpoint.every={SAVED}",
        "checkpoint.keep_last=null",
        *([AVERAGE] if averaged else []),
    ]


Job = tuple[Path | None, Path, list[str]]
"""(checkpoint or None, run folder, overrides)"""


def _on_ranks(plan: str, jobs: Sequence[Job]) -> None:
    ranks = LAYOUTS[plan].ranks if plan in LAYOUTS else 1
    composed = [(saved, run_dir, composed_of(TINY, run_dir, *with_few_files(given))) for saved, run_dir, given in jobs]
    kept_ranks(_run_jobs, ranks, composed, timeout=300 + 60 * len(jobs))


def _run_jobs(jobs: Sequence[tuple[Path | None, Path, Composed]]) -> None:
    """Train or resume the jobs one after the other, on the ranks that exist."""
    mesh = None
    for checkpoint, run_dir, composed in jobs:
        recipe = typed(composed)
        mesh = mesh or build_mesh(recipe.plan)
        on_main(mesh, partial(open_run_folder, run_dir, fresh=False))
        trainer = build(recipe, mesh, resume=str(checkpoint) if checkpoint else "never")
        if checkpoint:
            trainer.save()
        elif mesh.world_size == 1:
            stream = trainer.corpus.train_batches({}, 0, STEPS * max(BATCHES) // GLOBAL_BATCH, 0, 1)
            _write(run_dir / "stream.json", [batch.samples for batch in stream])
        consumed = _note_samples(trainer)
        trainer.fit()
        by_rank = dict(mesh.gather_objects((mesh.data_rank, consumed)))
        shares = [by_rank[rank] for rank in range(mesh.data_size)]
        if mesh.is_main:
            _write(run_dir / CONSUMED, [list(chain(*step)) for step in zip(*shares, strict=True)])
        for callback in trainer.callbacks.values():
            callback.close()
    if mesh:
        mesh.close()


def _note_samples(trainer: Trainer) -> list[list[int]]:
    """A list that is filled with the samples of this rank in every step to come."""
    consumed: list[list[int]] = []
    step = trainer.strategy.forward_backward

    def noting(batch: Any, loss_function: Any) -> Any:
        consumed.append(list(batch.samples))
        return step(batch, loss_function)

    trainer.strategy.forward_backward = noting  # type: ignore[method-assign]
    return consumed


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
