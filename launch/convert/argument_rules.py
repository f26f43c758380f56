"""Conversion rules for arguments of other tools for which trireme has no key that takes the same values.

A rule chooses a configuration group, computes a value, or reads a file. It gets the draft of the recipe, the argument's
value, and all arguments. Arguments without a rule are looked up in ``configs/other_names.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...configs.key_list import FOLDER, group_options
from ...configs.other_names import find
from ...models.json_file import read_json
from .axolotl_rules import AXOLOTL_RULES
from .recipe_draft import Draft
from .rule import Arguments, Rule, mapping, number, option

USUAL_SHAPE = {"cosine": {"min_lr_ratio": 0.0}, "cosine_with_restarts": {"num_cycles": 1}, "polynomial": {"power": 1.0}}
"""Schedule -> options of transformers' defaults that differ from the file in configs/scheduler."""


def scheduler(draft: Draft, value: Any, given: Arguments) -> None:
    option(draft, "scheduler", "lr_scheduler_type", value)
    warms_up = any(given.get(name) for name in ("warmup_steps", "warmup_ratio"))
    if draft.choices.get("scheduler") == ["constant"] and warms_up:
        draft.choose("scheduler", "constant_with_warmup")


def without_preset(draft: Draft) -> None:
    """Set options that a file of configs/scheduler switches on and the other tool does not: warm-up and lowest rate."""
    name = draft.choices.get("scheduler", ["cosine"])[-1]
    preset = yaml.safe_load((FOLDER / "scheduler" / f"{name}.yaml").read_text(encoding="utf-8"))
    warmed = {"scheduler.warmup_steps", "scheduler.warmup_ratio"} & draft.values.keys()
    if "warmup_ratio" in preset and not warmed:
        draft.set("scheduler.warmup_ratio", 0.0)
    elif "warmup_ratio" in preset and "scheduler.warmup_steps" in warmed:
        draft.set("scheduler.warmup_ratio", None)
    for key, value in USUAL_SHAPE.get(name, {}).items():
        if f"scheduler.{key}" not in draft.values:
            draft.set(f"scheduler.{key}", value)


def scheduler_arguments(draft: Draft, value: Any, given: Arguments) -> None:
    keys = {"num_cycles": "num_cycles", "power": "power", "min_lr_rate": "min_lr_ratio", "min_lr_ratio": "min_lr_ratio"}
    rate = number("learning_rate", given.get("learning_rate") or 0)
    for name, each in mapping("lr_scheduler_kwargs", value).items():
        if name in keys:
            draft.set(f"scheduler.{keys[name]}", each)
        elif name in ("lr_end", "min_lr") and rate:
            draft.set("scheduler.min_lr_ratio", round(number(f"lr_scheduler_kwargs.{name}", each) / rate, 12))
        else:
            draft.leave(f"lr_scheduler_kwargs.{name}", each, "see trireme keys scheduler")


def warmup(draft: Draft, value: Any, given: Arguments) -> None:
    if not value:
        return
    value = number("warmup_steps", value)
    draft.set("scheduler.warmup_ratio" if value < 1 else "scheduler.warmup_steps", value if value < 1 else int(value))


def warmup_ratio(draft: Draft, value: Any, given: Arguments) -> None:
    if value and not given.get("warmup_steps"):  # the number of steps wins in transformers too
        draft.set("scheduler.warmup_ratio", number("warmup_ratio", value))


def optimizer(draft: Draft, value: Any, given: Arguments) -> None:
    option(draft, "optimizer", "optim", value)


def betas(draft: Draft, value: Any, given: Arguments) -> None:
    usual = {"adam_beta1": 0.9, "adam_beta2": 0.999}
    draft.set("optimizer.betas", [number(name, given.get(name, beta)) for name, beta in usual.items()])


def max_steps(draft: Draft, value: Any, given: Arguments) -> None:
    count = int(number("max_steps", value))
    if count > 0:
        draft.set("trainer.max_steps", count)
        draft.set("trainer.epochs", None)


def epochs(name: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if number("max_steps", given.get("max_steps") or -1) < 1:  # max_steps wins
            draft.set("trainer.epochs", number(name, value))
            draft.set("trainer.max_steps", None)

    return rule


def precision(name: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if value is True or str(value).lower() in ("auto", "full", "true"):
            draft.set("plan.precision", name)

    return rule


def cadence(name: str, key: str, steps: str, usual: Any) -> Rule:
    """A strategy (no, steps, epoch) with its number of steps."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        plain = "no" if value is False else str(getattr(value, "value", value))
        if plain == "steps":
            count = given.get(steps) or usual
            if isinstance(count, float) and 0 < count < 1:
                draft.leave(steps, count, f"a share of the run; give a number of steps: {key}=N")
            elif count:
                draft.set(key, int(number(steps, count)))
        elif plain == "epoch":
            draft.set(key, "epoch")
        elif plain == "no":
            _never(draft, key)
        else:
            draft.leave(name, value, f"{key} takes a number of steps, epoch or null")

    return rule


def _never(draft: Draft, key: str) -> None:
    if key == "trainer.log_every":
        draft.leave("logging_strategy", "no", "training lines are always written; fewer: trainer.log_every=1000")
        return
    draft.set(key, None)
    draft.set("checkpoint.at_end" if key == "checkpoint.every" else "trainer.eval_at_end", False)


def steps(name: str, key: str, *strategies: str) -> Rule:
    """A number of steps, which counts if no strategy is given; otherwise the strategy's rule has read it."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if not any(strategy in given for strategy in strategies):
            cadence(name, key, name, None)(draft, "steps", {name: value})

    return rule


def best_model(draft: Draft, value: Any, given: Arguments) -> None:
    if value:
        draft.choose("callbacks", "default")
        draft.choose("callbacks", "best_model")
        draft.set("checkpoint.keep_best", 1)
        draft.set("checkpoint.load_best", True)


def metric(draft: Draft, value: Any, given: Arguments) -> None:
    name = str(value)
    draft.set("checkpoint.metric", name if name.startswith("eval_") else f"eval_{name}")
    if given.get("greater_is_better") or ("greater_is_better" not in given and not name.endswith("loss")):
        draft.set("checkpoint.mode", "max")


def kept(draft: Draft, value: Any, given: Arguments) -> None:
    draft.set("checkpoint.keep_last", int(number("save_total_limit", value)))


def recompute(draft: Draft, value: Any, given: Arguments) -> None:
    if value:
        draft.set("plan.recompute", "full")


def trackers(draft: Draft, value: Any, given: Arguments) -> None:
    for name in value if isinstance(value, list) else [value]:
        plain = {"comet_ml": "comet", "azure_ml": "azureml"}.get(str(name), str(name))
        if plain in ("none", "None", "[]"):
            continue
        if plain in group_options("tracker"):
            draft.choose("tracker", plain)
        else:
            draft.leave("report_to", plain, f"choose one of {', '.join(group_options('tracker'))}")


def push(draft: Draft, value: Any, given: Arguments) -> None:
    if not value:
        return
    draft.choose("callbacks", "default")
    draft.choose("callbacks", "push")
    for name, key in (
        ("hub_model_id", "hub_id"),
        ("hub_private_repo", "private"),
        ("hub_strategy", "strategy"),
        ("hub_always_push", "always"),
    ):
        if given.get(name) is not None:
            draft.set(f"callbacks.push.{key}", given[name])


def compiled(key: str) -> Rule:
    """A choice of ``torch.compile``, which Trainer then uses also without ``torch_compile``."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        draft.set("plan.compile", True)
        draft.set(key, str(value))

    return rule


def fsdp(draft: Draft, value: Any, given: Arguments) -> None:
    words = value if isinstance(value, list) else str(value).split()
    if value is True:
        words = ["full_shard"]
    for word in words:
        if word == "offload":
            draft.set("plan.fsdp.offload", True)
        elif word not in ("auto_wrap", "True", "False"):
            option(draft, "plan", "fsdp", word)


def fsdp_options(draft: Draft, value: Any, given: Arguments) -> None:
    if not isinstance(value, dict):
        draft.leave("fsdp_config", value, "a file: write its keys into the arguments")
        return
    for name, each in value.items():
        full = name if name.startswith("fsdp_") else f"fsdp_{name}"
        entry = find(full)
        if entry and entry.ours and not entry.how:
            draft.set(entry.ours, each)
        else:
            draft.leave(f"fsdp_config.{name}", each, entry.how if entry else "see trireme keys plan.fsdp")


def deepspeed(draft: Draft, value: Any, given: Arguments) -> None:
    """The recipe names the file as it is; the stage in the file chooses the plan."""
    stage = 2
    if isinstance(value, dict):
        draft.leave("deepspeed", "a mapping", "write it to a file and name that: plan.deepspeed=FILE")
        stage = (value.get("zero_optimization") or {}).get("stage", 0)
    else:
        draft.set("plan.deepspeed", str(value))
        try:
            stage = read_json(Path(str(value))).get("zero_optimization", {}).get("stage", 0)
        except (OSError, ValueError, AttributeError):
            draft.leave("deepspeed", value, "the file cannot be read here; check that the plan has its stage")
    draft.choose("plan", f"zero{stage}")


def nothing(draft: Draft, value: Any, given: Arguments) -> None:
    """For arguments that another rule reads."""


def batch(draft: Draft, given: Arguments, ranks: int) -> None:
    """The batch of a step from the micro-batch, accumulation and data ranks."""
    names = ("per_device_train_batch_size", "per_gpu_train_batch_size", "micro_batch_size")
    micro = next((given[name] for name in names if given.get(name)), None)
    accumulation = given.get("gradient_accumulation_steps")
    if micro is None and accumulation is None and not given.get("batch_size"):
        return
    size = _whole_number(micro, 8)
    draft.set("trainer.micro_batch_size", size)
    whole = _whole_number(given.get("batch_size"), size * _whole_number(accumulation, 1))
    draft.set("trainer.global_batch_size", whole * ranks)


def _whole_number(value: Any, otherwise: int) -> int:
    """A number, or ``otherwise`` for ``auto`` and what was not given."""
    return int(value) if str(value).isdigit() else otherwise


RULES: dict[str, Rule] = AXOLOTL_RULES | {
    "per_device_train_batch_size": nothing,
    "per_gpu_train_batch_size": nothing,
    "micro_batch_size": nothing,
    "gradient_accumulation_steps": nothing,
    "batch_size": nothing,
    "lr_scheduler_type": scheduler,
    "lr_scheduler": scheduler,
    "lr_scheduler_kwargs": scheduler_arguments,
    "warmup_steps": warmup,
    "warmup_ratio": warmup_ratio,
    "packing_strategy": nothing,
    "excess_length_strategy": nothing,
    "optim": optimizer,
    "optimizer": optimizer,
    "adam_beta1": betas,
    "adam_beta2": betas,
    "max_steps": max_steps,
    "num_train_epochs": epochs("num_train_epochs"),
    "num_epochs": epochs("num_epochs"),
    "bf16": precision("bf16"),
    "bfloat16": precision("bf16"),
    "fp16": precision("fp16"),
    "float16": precision("fp16"),
    "logging_strategy": cadence("logging_strategy", "trainer.log_every", "logging_steps", 500),
    "eval_strategy": cadence("eval_strategy", "trainer.eval_every", "eval_steps", 500),
    "evaluation_strategy": cadence("evaluation_strategy", "trainer.eval_every", "eval_steps", 500),
    "save_strategy": cadence("save_strategy", "checkpoint.every", "save_steps", 500),
    "logging_steps": steps("logging_steps", "trainer.log_every", "logging_strategy"),
    "eval_steps": steps("eval_steps", "trainer.eval_every", "eval_strategy", "evaluation_strategy"),
    "save_steps": steps("save_steps", "checkpoint.every", "save_strategy"),
    "load_best_model_at_end": best_model,
    "save_total_limit": kept,
    "metric_for_best_model": metric,
    "greater_is_better": nothing,
    "gradient_checkpointing": recompute,
    "activation_checkpointing": recompute,
    "report_to": trackers,
    "push_to_hub": push,
    "hub_model_id": nothing,
    "hub_private_repo": nothing,
    "hub_strategy": nothing,
    "hub_always_push": nothing,
    "torch_compile_backend": compiled("plan.compile_backend"),
    "torch_compile_mode": compiled("plan.compile_mode"),
    "fsdp": fsdp,
    "fsdp_config": fsdp_options,
    "deepspeed": deepspeed,
    "peft_use_dora": nothing,
}
"""Argument -> its rule."""
