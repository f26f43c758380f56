"""Rules that convert those arguments of other training tools that cannot be copied unchanged to a key of a recipe: for
example schedules, save intervals, trackers, FSDP and DeepSpeed options.

A rule chooses a configuration group, computes a value, or reads a file. It gets the draft of the recipe, the argument's
value, and all arguments. Arguments without a rule are looked up in ``configs/names_of_other_tools.yaml``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...configs.key_list import FOLDER, group_options
from ...errors import Problem, UserError
from ...models.json_file import read_json
from ..argument_file import read_arguments
from ..fsdp_options import fsdp_options
from .axolotl_rules import AXOLOTL_RULES
from .precision_rules import PRECISION_RULES
from .recipe_draft import Draft
from .rule import Arguments, Rule, mapping, number, option, switch, whole

USUAL_SHAPE = {"cosine": {"min_lr_ratio": 0.0}, "cosine_with_restarts": {"num_cycles": 1}, "polynomial": {"power": 1.0}}
"""Schedule -> options of transformers' defaults that differ from the file in configs/scheduler."""


def scheduler(name: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        option(draft, "scheduler", name, value)
        warms_up = any(given.get(name) for name in ("warmup_steps", "warmup_ratio"))
        if draft.choices.get("scheduler") == ["constant"] and warms_up:
            draft.choose("scheduler", "constant_with_warmup")

    return rule


def without_preset(draft: Draft) -> None:
    """Override options that a file of configs/scheduler sets and the other tool does not: warm-up and lowest rate."""
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
    size = number("warmup_steps", value)
    if 0 < size < 1:
        draft.set("scheduler.warmup_ratio", size)
    elif size and (steps := whole(draft, "warmup_steps", value)):
        draft.set("scheduler.warmup_steps", steps)


def warmup_ratio(draft: Draft, value: Any, given: Arguments) -> None:
    share = number("warmup_ratio", value)
    if share and given.get("warmup_steps"):  # the number of steps wins in transformers too
        draft.leave("warmup_ratio", value, "has no effect beside warmup_steps; leave it out")
    elif share:
        draft.set("scheduler.warmup_ratio", share)


def optimizer(name: str) -> Rule:
    return lambda draft, value, given: option(draft, "optimizer", name, value)


def betas(draft: Draft, value: Any, given: Arguments) -> None:
    usual = {"adam_beta1": 0.9, "adam_beta2": 0.999}
    draft.set("optimizer.betas", [number(name, given.get(name, beta)) for name, beta in usual.items()])


def max_steps(draft: Draft, value: Any, given: Arguments) -> None:
    off = number("max_steps", value) in (0, -1)
    if not off and (count := whole(draft, "max_steps", value, 1)):
        draft.set("trainer.max_steps", count)
        draft.set("trainer.epochs", None)


def epochs(name: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if number("max_steps", given.get("max_steps") or -1) > 0:
            draft.leave(name, value, "has no effect beside max_steps; leave it out")
        else:
            draft.set("trainer.epochs", number(name, value))
            draft.set("trainer.max_steps", None)

    return rule


def cadence(name: str, key: str, steps: str, usual: Any) -> Rule:
    """A strategy (no, steps, epoch) with its number of steps."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        plain = "no" if value is False else str(getattr(value, "value", value))
        if plain == "steps":
            count = given.get(steps)
            if count is None or (usual and steps == "eval_steps" and count == 0):  # as in transformers
                count = (given.get("logging_steps") if steps == "eval_steps" else None) or usual
            if 0 < number(steps, count) < 1:
                draft.leave(steps, count, f"is a fraction of the run; write a number of steps, {key}=N")
            elif size := whole(draft, steps, count, 1):
                draft.set(key, size)
        elif plain == "epoch":
            draft.set(key, "epoch")
        elif plain == "no":
            _switch_off(draft, key)
        else:
            draft.leave(name, value, f"cannot be converted; {key} takes a number of steps, epoch or null")

    return rule


def _switch_off(draft: Draft, key: str) -> None:
    if key == "trainer.log_every":
        draft.leave(
            "logging_strategy", "no", "cannot be switched off; for fewer training lines, write trainer.log_every=1000"
        )
        return
    draft.set(key, None)
    draft.set("checkpoint.at_end" if key == "checkpoint.every" else "trainer.eval_at_end", False)


def steps(name: str, key: str, *strategies: str) -> Rule:
    """A number of steps, which counts if no strategy is given; otherwise the strategy's rule has read it."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        strategy = next((strategy for strategy in strategies if given.get(strategy) is not None), None)
        if strategy is None:
            cadence(name, key, name, None)(draft, "steps", {name: value})
        elif given[strategy] != "steps":
            draft.leave(name, value, f"has no effect, since {strategy} is {given[strategy]}; leave it out")

    return rule


def best_model(draft: Draft, value: Any, given: Arguments) -> None:
    if switch(draft, "load_best_model_at_end", value):
        draft.choose("callbacks", "default")
        draft.choose("callbacks", "best_model")
        draft.set("checkpoint.keep_best", 1)
        draft.set("checkpoint.load_best", True)


def metric(draft: Draft, value: Any, given: Arguments) -> None:
    name = str(value)
    draft.set("checkpoint.metric", name if name.startswith("eval_") else f"eval_{name}")
    if given.get("greater_is_better") is None and not name.endswith("loss"):
        draft.set("checkpoint.mode", "max")


def greater(draft: Draft, value: Any, given: Arguments) -> None:
    draft.set("checkpoint.mode", "max" if switch(draft, "greater_is_better", value) else "min")


def kept(draft: Draft, value: Any, given: Arguments) -> None:
    """A limit of 0 or below keeps all checkpoints in transformers."""
    if number("save_total_limit", value) <= 0:
        draft.set("checkpoint.keep_last", None)
    elif count := whole(draft, "save_total_limit", value, 1):
        draft.set("checkpoint.keep_last", count)


def clipping(name: str) -> Rule:
    """0 clips nothing in the other tools."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        draft.set("trainer.max_grad_norm", number(name, value) or None)

    return rule


def recompute(name: str) -> Rule:
    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if name == "gradient_checkpointing" and value in ("offload", "offload_disk", "unsloth"):
            draft.set("plan.recompute", "full")
            draft.leave(name, value, "was converted to plan.recompute=full, which offloads nothing")
        elif switch(draft, name, value):
            draft.set("plan.recompute", "full")

    return rule


def trackers(draft: Draft, value: Any, given: Arguments) -> None:
    for name in value if isinstance(value, list) else [value]:
        plain = {"comet_ml": "comet", "azure_ml": "azureml"}.get(str(name), str(name))
        if plain in ("none", "None", "[]"):
            continue
        if plain in group_options("tracker"):
            draft.choose("tracker", plain)
        else:
            draft.leave(
                "report_to", plain, f"is not a tracker of trireme; choose one of {', '.join(group_options('tracker'))}"
            )


def push(draft: Draft, value: Any, given: Arguments) -> None:
    if not switch(draft, "push_to_hub", value):
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


def of_push(name: str, usual: Any = None) -> Rule:
    """An option of ``push_to_hub``, whose rule reads it."""

    def rule(draft: Draft, value: Any, given: Arguments) -> None:
        if value and value != usual and not given.get("push_to_hub"):
            draft.leave(name, value, "has no effect, since push_to_hub is off; leave it out")

    return rule


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


def fsdp_config(draft: Draft, value: Any, given: Arguments) -> None:
    """A mapping, or a file with one."""
    if isinstance(value, str) and value:
        try:
            value = read_arguments(Path(value).expanduser(), "fsdp_config")
        except UserError as error:
            whys = (each.why if isinstance(each, Problem) else each for each in error.problems)
            draft.leave("fsdp_config", value, f"{', '.join(whys)}; plan.fsdp=FILE takes a file")
            return
    found, problems = fsdp_options(mapping("fsdp_config", value), "fsdp_config.")
    for key, each in found.items():
        draft.set(f"plan.{key}", each)
    for problem in problems:
        draft.leave(problem.field, problem.value, f"{problem.why}: {problem.fix}")


def deepspeed(draft: Draft, value: Any, given: Arguments) -> None:
    """The recipe names the file as it is; the stage in the file chooses the plan."""
    stage = 2
    if not isinstance(value, dict | str) or not value:
        draft.leave("deepspeed", value, "is neither a file nor a mapping")
        return
    if isinstance(value, dict):
        draft.leave("deepspeed", "a mapping", "cannot be converted; write it to a file and set plan.deepspeed=FILE")
        block = value.get("zero_optimization")
        stage = block.get("stage", 0) if isinstance(block, dict) else 0
    else:
        draft.set("plan.deepspeed", str(value))
        try:
            stage = read_json(Path(str(value))).get("zero_optimization", {}).get("stage", 0)
        except (OSError, ValueError, AttributeError):
            draft.leave(
                "deepspeed", value, "cannot be read on this machine; check that the plan has the stage of the file"
            )
    option(draft, "plan", "deepspeed", f"zero{stage}")


def nothing(draft: Draft, value: Any, given: Arguments) -> None:
    """The rule of arguments that ``batch_rules.py`` reads together with others: it sets nothing."""


RULES: dict[str, Rule] = (
    AXOLOTL_RULES
    | PRECISION_RULES
    | {
        "per_device_train_batch_size": nothing,
        "per_gpu_train_batch_size": nothing,
        "micro_batch_size": nothing,
        "gradient_accumulation_steps": nothing,
        "batch_size": nothing,
        "lr_scheduler_type": scheduler("lr_scheduler_type"),
        "lr_scheduler": scheduler("lr_scheduler"),
        "lr_scheduler_kwargs": scheduler_arguments,
        "warmup_steps": warmup,
        "warmup_ratio": warmup_ratio,
        "excess_length_strategy": nothing,
        "optim": optimizer("optim"),
        "optimizer": optimizer("optimizer"),
        "adam_beta1": betas,
        "adam_beta2": betas,
        "max_steps": max_steps,
        "num_train_epochs": epochs("num_train_epochs"),
        "num_epochs": epochs("num_epochs"),
        "max_grad_norm": clipping("max_grad_norm"),
        "gradient_clipping": clipping("gradient_clipping"),
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
        "greater_is_better": greater,
        "gradient_checkpointing": recompute("gradient_checkpointing"),
        "activation_checkpointing": recompute("activation_checkpointing"),
        "report_to": trackers,
        "push_to_hub": push,
        "hub_model_id": of_push("hub_model_id"),
        "hub_private_repo": of_push("hub_private_repo"),
        "hub_strategy": of_push("hub_strategy", "every_save"),
        "hub_always_push": of_push("hub_always_push"),
        "torch_compile_backend": compiled("plan.compile_backend"),
        "torch_compile_mode": compiled("plan.compile_mode"),
        "fsdp": fsdp,
        "fsdp_config": fsdp_config,
        "deepspeed": deepspeed,
    }
)
"""Argument -> its rule."""
