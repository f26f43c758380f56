"""Training gives the losses and gradient norms of ``transformers.Trainer`` on the same weights and batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.foreign import rows
from helpers.metrics import training
from helpers.recipes import tiny_recipe
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.tasks.causal_lm import CausalLM

STEPS = 8


class Losses(TrainerCallback):
    def __init__(self) -> None:
        self.lines: list[dict] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            self.lines.append(dict(logs))


class Sequential(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("masks", [[], ["+collator._target_=helpers.masking.UnevenMasks"]], ids=["full", "uneven"])
def test_same_losses_and_gradient_norms(tmp_path: Path, masks: list[str]) -> None:
    overrides = [
        *masks,
        "optimizer.weight_decay=0.1",
        "scheduler=linear",
        "scheduler.warmup_ratio=0.25",
        f"trainer.max_steps={STEPS}",
        "trainer.max_grad_norm=0.5",
    ]
    start = tiny_recipe(tmp_path / "start", *masks, "optimizer.lr=0", "trainer.max_steps=1")
    train(start)
    export(str(tmp_path / "start"), str(tmp_path / "weights"))

    recipe = tiny_recipe(tmp_path / "ours", *overrides)
    train(recipe)

    corpus = open_corpus(recipe.data, recipe.seed, recipe.trainer, CausalLM(), recipe.collator)
    steps = corpus.train_batches({}, 0, STEPS, 0, 1)
    samples = [row for batch in steps for micro in batch.micro_batches for row in rows(micro)]
    losses = Losses()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        learning_rate=1e-3,
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=0.1,
        max_grad_norm=0.5,
        lr_scheduler_type="linear",
        warmup_steps=STEPS // 4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        average_tokens_across_devices=False,
        optim="adamw_torch",
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "weights", dtype=torch.float32)
    theirs = Sequential(model=model, args=arguments, train_dataset=samples, callbacks=[losses])
    theirs.train()

    ours = training(tmp_path / "ours")
    assert len(ours) == len(losses.lines) == STEPS
    for mine, their in zip(ours, losses.lines, strict=True):
        assert mine["loss"] == pytest.approx(float(their["loss"]), rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(float(their["grad_norm"]), rel=1e-4)
