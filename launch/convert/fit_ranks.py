"""Make a converted recipe fit its number of ranks: choose the plan ``ddp`` for several ranks if the other tool's file
names no plan, and adjust batch sizes so that all data ranks get equal parts.

Files of other tools often name no plan, since those tools train data-parallel whenever several ranks are launched.
"""

from __future__ import annotations

import math

from ...trainer.settings import TrainerConfig
from .recipe_draft import Draft

MICRO, WHOLE = "trainer.micro_batch_size", "trainer.global_batch_size"
USUAL = TrainerConfig.micro_batch_size


def choose_plan(draft: Draft, ranks: int) -> None:
    """Choose ``ddp`` for several ranks if the file names no plan, as the other tools do."""
    if ranks > 1 and draft.choices.get("plan", ["single"])[-1] == "single":
        draft.choose("plan", "ddp")
        draft.chosen["plan=ddp"] = f"the file names no plan, and {ranks} ranks each train a copy of the model"


def fit_batches(draft: Draft, data_ranks: int, fixed: bool = False) -> None:
    """Make the batch of a step a multiple of the micro-batches of all data ranks, as a recipe needs it.

    Args:
        fixed: the run reads the file too, so the batch sizes of the file are not changed.
    """
    micro, whole = draft.values.get(MICRO), draft.values.get(WHOLE)
    if not all(isinstance(size, int) and size > 0 for size in (micro or 1, whole or 1)):
        return  # refused by the check of the recipe
    if (whole or TrainerConfig.global_batch_size) % ((micro or USUAL) * data_ranks) == 0:
        return
    ranks = f"{data_ranks} data rank{'s' if data_ranks > 1 else ''}"
    if whole is None:
        per_rank = micro or USUAL
        what = f"{per_rank} samples on each of {ranks}"
        draft.chosen[f"{WHOLE}={per_rank * data_ranks}"] = what if micro else f"{what}; the file names no batch"
        draft.set(WHOLE, per_rank * data_ranks)
        return
    unit = (micro or 1) * data_ranks
    if whole % unit:
        of = f"{ranks} with micro-batches of {micro}" if micro else ranks
        if fixed:
            why = f"{of} cannot share it: change it in the file, or train on another number of ranks"
            draft.leave("train_batch_size", whole, why)
            return
        larger = math.ceil(whole / unit) * unit
        draft.chosen[f"{WHOLE}={larger}"] = f"the file has {whole}, which {of} cannot share"
        draft.set(WHOLE, larger)
        whole = larger
    if micro is None:
        per_rank = whole // data_ranks
        size = next(size for size in range(min(USUAL, per_rank), 0, -1) if per_rank % size == 0)
        if size != USUAL:
            draft.chosen[f"{MICRO}={size}"] = f"the file names none, and {ranks} share {whole} samples"
            draft.set(MICRO, size)
