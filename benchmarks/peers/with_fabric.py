"""Run the training job of ``compare.py`` with Lightning Fabric."""

from __future__ import annotations

import os

import torch
from job import CLIP, Marks, read_job
from lightning_fabric import Fabric
from loop import adamw, evaluate, loader, train


def main() -> None:
    job = read_job()
    marks, ranks = Marks(job), int(os.environ.get("WORLD_SIZE", "1"))
    strategy = "ddp" if job.plan == "ddp" else "auto"
    precision = "bf16-mixed" if job.bf16 else "32-true"
    accelerator = "cuda" if job.on_gpu else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=ranks, strategy=strategy, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    model = job.model()
    if job.shape["recompute"]:
        model.gradient_checkpointing_enable()
    model, optimizer = fabric.setup(model, adamw(model.parameters()))
    train_batches, held_out = (
        fabric.setup_dataloaders(loader(job, which, fabric.global_rank, ranks), use_distributed_sampler=False)
        for which in ("train", "held_out")
    )

    def step(micros: list) -> torch.Tensor:
        losses = []
        for number, micro in enumerate(micros, 1):
            with fabric.no_backward_sync(model, enabled=number < len(micros)):
                loss = model(**micro).loss
                fabric.backward(loss / len(micros))
            losses.append(loss.detach())
        fabric.clip_gradients(model, optimizer, max_norm=CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).mean()

    def save() -> None:
        fabric.save(job.out / "saved.ckpt", {"model": model, "optimizer": optimizer})

    train(job, marks, train_batches, step, save)
    evaluate(marks, model, held_out, lambda loss: fabric.all_reduce(loss, reduce_op="mean"))  # type: ignore[arg-type, return-value]
    marks.begin()
    if fabric.is_global_zero:
        model.module.save_pretrained(job.out / "exported")
    fabric.barrier()
    marks.end("export")
    marks.write()


if __name__ == "__main__":
    main()
