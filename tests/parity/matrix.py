"""The parity matrix: plan x family x accumulation x masks, against one process, for 20 steps in fp32.

``make parity`` runs all of it, prints the table and writes ``docs/parity.md``; ``test_matrix.py`` runs a part.
A step's loss and the norm of its global gradient are compared as relative differences; the first step tests the
forward and the backward pass, the later ones every optimizer step before them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from helpers.metrics import training, worst_difference
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.zero import load_deepspeed
from trireme.trainer.build import train

TOLERANCE = 1e-4
STEPS = 20
GLOBAL_BATCH = 16
FAMILIES = ("persimmon", "gpt_neox", "llama", "gpt2")
MASKS = {"full": [], "uneven": ["+collator._target_=helpers.masking.UnevenMasks"]}


@dataclass(frozen=True)
class Layout:
    """Ranks of a plan in the matrix, and how many of them see different samples."""

    ranks: int
    data: int
    least: int = 1
    """Fewest micro-batches of a step that the plan can run."""


LAYOUTS = {
    "ddp": Layout(2, 2),
    "zero0": Layout(2, 2),
    "zero1": Layout(2, 2),
    "zero2": Layout(2, 2),
    "zero3": Layout(2, 2),
    "zero1_offload": Layout(2, 2),
    "zero2_offload": Layout(2, 2),
    "zero3_offload": Layout(2, 2),
    "zero3_nvme": Layout(2, 2),
    "fsdp_full_shard": Layout(2, 2),
    "fsdp_shard_grad_op": Layout(2, 2),
    "fsdp_no_shard": Layout(2, 2),
    "fsdp_hybrid_shard": Layout(4, 4),
    "fsdp_hybrid_shard_zero2": Layout(4, 4),
    "fsdp_offload": Layout(2, 2),
    "tp": Layout(2, 1),
    "tp_sp": Layout(2, 1),
    "pp_gpipe": Layout(2, 1, 2),
    "pp_1f1b": Layout(2, 1, 2),
    "pp_interleaved": Layout(2, 1, 2),
    "pp_zero_bubble": Layout(2, 1, 2),
    "dp_pp": Layout(4, 2, 2),
    "dp_tp": Layout(4, 2),
    "3d": Layout(8, 2, 2),
    "3d_zero1": Layout(8, 2, 2),
}
"""Every plan of ``configs/plan`` but ``single`` (a test holds this table to the folder)."""


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    plan: str
    family: str
    accumulation: int
    masks: str
    overrides: tuple[str, ...] = ()
    """Further options of the plan."""

    @property
    def name(self) -> str:
        parts = [self.plan, self.family, str(self.accumulation), self.masks, *self.overrides]
        return "-".join(parts).replace("=", "_")

    @property
    def micro_batches(self) -> int:
        """A pipeline needs several micro-batches; its accumulation 1 is the fewest that it runs."""
        return max(self.accumulation, LAYOUTS[self.plan].least)


def overridden(case: Case, *overrides: str) -> Case:
    """``case`` with further options."""
    return replace(case, overrides=(*case.overrides, *overrides))


def reference(folder: Path, family: str, masks: str, steps: int = STEPS) -> Path:
    """The run of one process, whole batches at once; run once and kept in ``folder``."""
    run_dir = folder / f"single-{family}-{masks}-{steps}"
    if not (run_dir / "done").exists():
        _train(run_dir, [*_common(family, masks, steps), f"trainer.micro_batch_size={GLOBAL_BATCH}"])
        (run_dir / "done").touch()
    return run_dir


def difference(case: Case, folder: Path, steps: int = STEPS) -> float:
    """Largest relative difference of losses and gradient norms of ``case`` from one process."""
    layout = LAYOUTS[case.plan]
    run_dir = folder / f"{case.name}-{steps}"
    micro = GLOBAL_BATCH // (layout.data * case.micro_batches)
    overrides = [*_common(case.family, case.masks, steps), f"plan={case.plan}", f"trainer.micro_batch_size={micro}"]
    overrides += case.overrides
    if case.plan == "zero3_nvme":
        (folder / "nvme").mkdir(exist_ok=True)
        for part in ("offload_optimizer", "offload_param"):
            overrides.append(f"plan.deepspeed.{part}.nvme_path={folder / 'nvme'}")
    if case.plan.startswith("zero"):
        load_deepspeed()
    run_ranks(_train, layout.ranks, run_dir, overrides, timeout=600)
    one, many = training(reference(folder, case.family, case.masks, steps)), training(run_dir)
    assert len(many) == steps and [line["tokens"] for line in one] == [line["tokens"] for line in many]
    return worst_difference(one, many)


def _common(family: str, masks: str, steps: int) -> list[str]:
    return [
        f"model={family}_tiny",
        *MASKS[masks],
        f"trainer.max_steps={steps}",
        f"trainer.global_batch_size={GLOBAL_BATCH}",
        "trainer.eval_at_end=false",
        "checkpoint.at_end=false",
    ]


def _train(run_dir: Path, overrides: list[str]) -> None:
    train(tiny_recipe(run_dir, *overrides))
