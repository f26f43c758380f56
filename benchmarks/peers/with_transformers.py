"""Run the training job of ``compare.py`` with ``transformers.Trainer``, or with a subclass such as TRL's."""

from __future__ import annotations

from typing import Any

from job import BETAS, CLIP, EPS, RATE, Job, Marks, read_job
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments

DEEPSPEED = {"zero2": 2, "zero3": 3}


class Marked(TrainerCallback):
    """Records the end of each step, and saves after one of them."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        self.marks.step()
        control.should_save = state.global_step == self.marks.job.shape["save_after"]
        return control


class InOrder(Trainer):
    def _get_train_sampler(self, *given: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def arguments(job: Job) -> dict[str, Any]:
    """The job as TrainingArguments."""
    found: dict[str, Any] = {
        "output_dir": str(job.out / "run"),
        "max_steps": job.shape["steps"],
        "per_device_train_batch_size": job.shape["micro_batch"],
        "per_device_eval_batch_size": job.shape["micro_batch"],
        "gradient_accumulation_steps": job.accumulation,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "adam_epsilon": EPS,
        "max_grad_norm": CLIP,
        "optim": "adamw_torch_fused",
        "bf16": job.bf16,
        "gradient_checkpointing": job.shape["recompute"],
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not job.on_gpu,
        "average_tokens_across_devices": False,
        "ddp_find_unused_parameters": False,
    }
    if stage := DEEPSPEED.get(job.plan):
        found["deepspeed"] = {
            "zero_optimization": {"stage": stage},
            "bf16": {"enabled": job.bf16},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
        }
    if job.plan == "fsdp_full_shard":
        found |= {"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2}}
    return found


def run(trainer: Trainer, job: Job, marks: Marks) -> None:
    """Train, evaluate, export; ``with_trl.py`` calls it too."""
    trainer.add_callback(Marked(marks))
    trainer.train()
    marks.begin()
    marks.loss = trainer.evaluate()["eval_loss"]
    marks.end("evaluation")
    marks.begin()
    trainer.save_model(str(job.out / "exported"))
    marks.end("export")
    marks.write()


def main() -> None:
    job = read_job()
    marks, options = Marks(job), TrainingArguments(**arguments(job))
    model = job.model()
    trainer = InOrder(model, options, train_dataset=job.blocks("train"), eval_dataset=job.blocks("held_out"))
    run(trainer, job, marks)


if __name__ == "__main__":
    main()
