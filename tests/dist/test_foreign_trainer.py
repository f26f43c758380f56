"""Checkpoints of ``transformers.Trainer`` can be resumed, evaluated, exported, and used as initial weights."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers.foreign import (
    BATCH,
    CLIP,
    SAVED_AT,
    STEPS,
    TIED,
    Arrays,
    arrays,
    assert_equal,
    batches,
    loaded,
    merged,
    model_and_recipe,
    overrides,
    prepared,
    resumed,
    rows,
)
from helpers.metrics import training
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.zero import load_deepspeed
from transformers import Trainer, TrainerCallback, TrainingArguments
from trireme.errors import UserError
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.evaluate_only import evaluate

LLAMA = ["model=llama_tiny"]
UNTIED_NORMS = ["model=persimmon_tiny"]
"""Norms with biases among matrices of many shapes."""


class Keep(TrainerCallback):
    """Records weights and optimizer state at the step of the checkpoint, and the loss of every step."""

    def __init__(self) -> None:
        self.held: Arrays = {}
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any):
        if state.global_step == SAVED_AT:
            held = {f"model.{name}": p for name, p in model.named_parameters()}
            for name, parameter in model.named_parameters():
                moments = getattr(optimizer, "optimizer", optimizer).state.get(parameter, {})
                held |= {f"optim.{name}.{key}": value for key, value in moments.items()}
            self.held = arrays(held)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


class InOrder(Trainer):
    """Takes samples in the order of the data set, and sees losses unrounded."""

    def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def _trained(folder: Path, *more: str, **options: Any) -> tuple[list[float], Arrays]:
    """Train with Trainer, which saves ``folder/checkpoint-3``; returns the losses after it and the state at it."""
    model, corpus, recipe = model_and_recipe(folder / "unused", *more)
    micros = [micro for step in batches(corpus) for micro in step]
    # The first label is never predicted, but Trainer counts it for some families, so samples must have none there.
    samples = [row for micro in micros for row in rows(micro)]
    settings = recipe.optimizer
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=SAVED_AT,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=BATCH // 2,
        learning_rate=float(settings["lr"]),
        weight_decay=float(settings["weight_decay"]),
        adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1],
        adam_epsilon=float(settings["eps"]),
        max_grad_norm=CLIP,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        include_num_input_tokens_seen=True,
        **options,
    )
    keep = Keep()
    trainer = InOrder(model, arguments, train_dataset=samples, callbacks=[keep])
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return keep.losses[SAVED_AT:], keep.held


def _write(folder: Path, *more: str) -> tuple[list[float], Arrays]:
    prepared(folder / "unused", *more)
    return _trained(folder, *more)


@pytest.mark.parametrize(
    ("plan", "ranks", "more"),
    [
        ("fsdp_full_shard", 2, TIED),
        pytest.param("tp", 2, LLAMA, marks=pytest.mark.long),
        pytest.param("zero3", 2, UNTIED_NORMS, marks=pytest.mark.long),
        pytest.param("pp_1f1b", 2, TIED, marks=pytest.mark.long),
    ],
    ids=["fsdp", "tp", "zero3", "pp"],
)
def test_a_trainer_folder_goes_on_under_another_plan(plan: str, ranks: int, more: list[str], tmp_path: Path) -> None:
    if plan.startswith("zero"):
        load_deepspeed()
    folder, run = tmp_path / "trainer", tmp_path / "run"
    losses, saved = _write(folder, *more)
    checkpoint = folder / f"checkpoint-{SAVED_AT}"
    arguments = [*more, f"plan={plan}"]
    results = run_ranks(loaded, ranks, tmp_path / "look", checkpoint, *arguments)
    assert_equal(merged(results), saved)
    state = results[0][1]
    assert (state["step"], state["samples"]) == (SAVED_AT, SAVED_AT * BATCH)
    assert state["tokens"] == SAVED_AT * BATCH * 32
    run_ranks(resumed, ranks, run, checkpoint, *arguments)
    # Trainer decays the same parameters as trireme in these families; its losses are rounded in the log.
    assert [line["loss"] for line in training(run)] == pytest.approx(losses, abs=1e-5 * losses[0])


def test_a_trainer_folder_is_evaluated_and_exported_and_used_as_weights(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    _, saved = _write(tmp_path / "trainer", *TIED)
    checkpoint = tmp_path / "trainer" / f"checkpoint-{SAVED_AT}"
    recipe = tiny_recipe(tmp_path / "run", *overrides(*TIED))
    found = evaluate(recipe, str(tmp_path / "trainer"))  # the newest in the output folder
    assert found["step"] == STEPS and found["weights"].endswith(f"checkpoint-{STEPS}")
    from_weights = [f"model.weights={checkpoint}", "data.tokenizer.vocab_size=512", *TIED]
    there = evaluate(recipe, str(checkpoint))["eval_loss"]
    tokenizer = _own_tokenizer(tmp_path / "tokenizer", recipe)
    pretrained = tiny_recipe(
        tmp_path / "pretrained", *overrides(*from_weights, f"data.tokenizer.path={tokenizer}", "model.config={}")
    )
    assert evaluate(pretrained)["eval_loss"] == pytest.approx(there, rel=1e-6)
    out = export(str(checkpoint), str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(out)
    assert_equal(arrays({f"model.{n}": p for n, p in model.named_parameters()}), _weights(saved))
    model.save_pretrained(tmp_path / "weights")
    with pytest.raises(UserError, match=r"holds weights only.*model\.weights="):
        resumed(tmp_path / "other", tmp_path / "weights", *TIED)


def _weights(saved: Arrays) -> Arrays:
    return {name: array for name, array in saved.items() if name.startswith("model.")}


def _own_tokenizer(folder: Path, recipe: Any) -> Path:
    from trireme.trainer.data.open_corpus import open_corpus
    from trireme.trainer.tasks.causal_lm import CausalLM

    open_corpus(recipe.data, recipe.seed, recipe.trainer, CausalLM(), recipe.collator).tokenizer.save_pretrained(folder)
    return folder


def test_parameters_that_were_frozen_must_be_named(tmp_path: Path) -> None:
    frozen = "model.frozen=[transformer.h.0.mlp.c_fc.weight]"
    _, saved = _write(tmp_path / "trainer", *TIED, frozen)
    checkpoint = tmp_path / "trainer" / f"checkpoint-{SAVED_AT}"
    with pytest.raises(UserError, match=r"steps \d+ parameters, but \d+ of the model are trained; set model.frozen"):
        loaded(tmp_path / "run", checkpoint, *TIED)
    held, _ = loaded(tmp_path / "run", checkpoint, *TIED, frozen)
    assert_equal(held, saved)


def test_a_bin_file_serves_as_weights(tmp_path: Path) -> None:
    """As one file or as shards with an index, with tied tensors under both names, given by folder or by file."""
    _, saved = _write(tmp_path / "trainer", *TIED)
    source = tmp_path / "trainer" / f"checkpoint-{SAVED_AT}"
    model, _, _ = model_and_recipe(tmp_path / "unused", f"model.weights={source}", *_with_tokenizer(tmp_path))
    folder = tmp_path / "bin"
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for path in (folder, folder / "pytorch_model.bin", _in_shards(model, tmp_path / "shards")):
        again, _, _ = model_and_recipe(tmp_path / "unused", f"model.weights={path}", *_with_tokenizer(tmp_path))
        assert_equal(arrays({f"model.{n}": p for n, p in again.named_parameters()}), _weights(saved))


def _with_tokenizer(tmp_path: Path) -> list[str]:
    recipe = tiny_recipe(tmp_path / "unused", *overrides(*TIED))
    return [*TIED, "model.config={}", f"data.tokenizer.path={_own_tokenizer(tmp_path / 'tokenizer', recipe)}"]


def _in_shards(model: Any, folder: Path) -> Path:
    import json

    folder.mkdir()
    model.config.save_pretrained(folder)
    places = {}
    for number, (name, tensor) in enumerate(model.named_parameters()):
        file = f"pytorch_model-{number % 2 + 1:05d}-of-00002.bin"
        places.setdefault(file, {})[name] = tensor.detach()
    for file, tensors in places.items():
        torch.save(tensors, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in places.items() for name in tensors}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


# -- Trainer with DeepSpeed inside ---------------------------------------------------------------------------------


def _with_deepspeed(folder: Path, *more: str) -> list[float]:
    config = {
        "zero_optimization": {"stage": 2},
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }
    losses, _ = _trained(folder, *more, deepspeed=config)
    if dist.is_initialized():
        dist.destroy_process_group()
    return losses


def test_a_trainer_folder_with_deepspeed_inside(tmp_path: Path) -> None:
    load_deepspeed()
    folder = tmp_path / "trainer"
    prepared(folder / "unused", *TIED)
    losses = run_ranks(_with_deepspeed, 1, folder, *TIED)[0]
    checkpoint = folder / f"checkpoint-{SAVED_AT}"
    assert (checkpoint / f"global_step{SAVED_AT}").is_dir()
    resumed(tmp_path / "run", checkpoint, *TIED)
    assert [line["loss"] for line in training(tmp_path / "run")] == pytest.approx(losses, abs=1e-5 * losses[0])
    assert "as DeepSpeed counted" in (tmp_path / "run" / "log.txt").read_text()
