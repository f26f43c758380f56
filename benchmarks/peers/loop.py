"""The data loader, optimizer, training loop and evaluation for the scripts that run accelerate, Fabric and DeepSpeed.

These libraries have no loop of their own. Each script passes its own step, save, and mean of the loss over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from job import BETAS, EPS, RATE, Job, Marks
from torch.utils.data import DataLoader, Sampler


class Share(Sampler[int]):
    """This rank's blocks: its micro-batches of each step, in order."""

    def __init__(self, blocks: int, micro_batch: int, rank: int, ranks: int) -> None:
        self.blocks, self.micro_batch, self.rank, self.ranks = blocks, micro_batch, rank, ranks

    def __iter__(self) -> Iterator[int]:
        for first in range(self.rank * self.micro_batch, self.blocks, self.ranks * self.micro_batch):
            yield from range(first, first + self.micro_batch)

    def __len__(self) -> int:
        return self.blocks // self.ranks


def loader(job: Job, which: str, rank: int, ranks: int) -> DataLoader[Any]:
    blocks = job.blocks(which)
    share = Share(len(blocks), job.shape["micro_batch"], rank, ranks)
    return DataLoader(blocks, batch_size=job.shape["micro_batch"], sampler=share)  # type: ignore[arg-type]


def adamw(parameters: Any) -> torch.optim.AdamW:
    trained = [each for each in parameters if each.requires_grad]
    return torch.optim.AdamW(trained, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)


def train(job: Job, marks: Marks, batches: Any, step: Callable[[list[Any]], Any], save: Callable[[], None]) -> None:
    """Take all steps.

    Args:
        step: takes a rank's micro-batches of one step, and returns its mean loss as a tensor.
        save: writes model and optimizer.
    """
    read = iter(batches)
    for number in range(1, job.shape["steps"] + 1):
        loss = step([next(read) for _ in range(job.accumulation)])
        if number % 10 == 0:
            float(loss)  # what a log of every tenth step asks for
        marks.step()
        if number == job.shape["save_after"]:
            save()


@torch.no_grad()
def evaluate(marks: Marks, model: Any, batches: Any, mean: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Note the mean loss over the held-out blocks of all ranks."""
    marks.begin()
    model.eval()
    losses = [model(**batch).loss.detach().float() for batch in batches]
    marks.loss = float(mean(torch.stack(losses).mean()))
    marks.end("evaluation")
