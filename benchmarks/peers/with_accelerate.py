"""Run the training job of ``compare.py`` with accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from job import CLIP, Marks, read_job
from loop import adamw, evaluate, loader, train


def main() -> None:
    job = read_job()
    marks = Marks(job)
    plugin = None
    if job.plan == "fsdp_full_shard":
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    accelerator = Accelerator(
        cpu=not job.on_gpu,
        mixed_precision="bf16" if job.bf16 else "no",
        gradient_accumulation_steps=job.accumulation,
        fsdp_plugin=plugin,
    )
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = job.model()
    if job.shape["recompute"]:
        model.gradient_checkpointing_enable()
    model, optimizer = accelerator.prepare(model, adamw(model.parameters()))
    batches = [loader(job, which, rank, ranks) for which in ("train", "held_out")]

    def step(micros: list) -> torch.Tensor:
        losses = []
        for micro in micros:
            with accelerator.accumulate(model):
                loss = model(**{name: value.to(accelerator.device) for name, value in micro.items()}).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), CLIP)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    train(job, marks, batches[0], step, lambda: accelerator.save_state(str(job.out / "saved")))
    on_device = ({name: value.to(accelerator.device) for name, value in micro.items()} for micro in batches[1])
    evaluate(marks, model, on_device, lambda loss: accelerator.reduce(loss, "mean"))
    marks.begin()
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(job.out / "exported", state_dict=state)
    accelerator.wait_for_everyone()
    marks.end("export")
    marks.write()


if __name__ == "__main__":
    main()
