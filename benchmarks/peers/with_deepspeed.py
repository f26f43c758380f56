"""Run the training job of ``compare.py`` with DeepSpeed alone."""

from __future__ import annotations

import os

import deepspeed
import torch
from job import CLIP, Marks, read_job
from loop import adamw, evaluate, loader, train

STAGES = {"single": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def main() -> None:
    job = read_job()
    marks = Marks(job)
    deepspeed.init_distributed("nccl" if job.on_gpu else "gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = {
        "train_batch_size": job.shape["global_batch"],
        "train_micro_batch_size_per_gpu": job.shape["micro_batch"],
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": STAGES[job.plan]},
        "bf16": {"enabled": job.bf16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    model = job.model()
    if job.shape["recompute"]:
        model.gradient_checkpointing_enable()
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw(model.parameters()), config=config)
    batches = [loader(job, which, rank, ranks) for which in ("train", "held_out")]

    def placed(micro: dict) -> dict:
        return {name: value.to(engine.device) for name, value in micro.items()}

    def step(micros: list) -> torch.Tensor:
        losses = []
        for micro in micros:
            loss = engine(**placed(micro)).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def mean(loss: torch.Tensor) -> torch.Tensor:
        torch.distributed.all_reduce(loss)
        return loss / ranks

    train(job, marks, batches[0], step, lambda: engine.save_checkpoint(str(job.out / "saved")))
    evaluate(marks, engine, map(placed, batches[1]), mean)
    marks.begin()
    engine.save_16bit_model(str(job.out / "exported"), "model.bin")
    marks.end("export")
    marks.write()


if __name__ == "__main__":
    main()
