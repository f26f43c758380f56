"""``trireme convert-args`` turns files of training arguments (transformers, TRL, axolotl, DeepSpeed, accelerate) into
recipes that pass the check, and names the arguments that it cannot convert.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import refused, trireme_here
from helpers.recipes import STDLIB, recipe_of
from transformers import TrainingArguments
from trireme.configs.names_of_other_tools import find
from trireme.errors import Problem, UserError
from trireme.launch.convert.argument_rules import RULES
from trireme.launch.convert.axolotl_rules import CHAT_COLUMNS, CHAT_KEYS, KEYS, TEMPLATES
from trireme.launch.convert.convert_arguments import converted, converted_soundly
from trireme.models.model_config import hf_config
from trireme.parallel.zero.deepspeed_json import deepspeed_config
from trireme.trainer.collect_recipe_values import recipe_values
from trireme.trainer.data.chat.named_templates import template_names

WITH = [
    "model=llama_tiny",
    f"data.source.paths=[{STDLIB}/json/*.py]",
    "data.source.format=txt",
    "data.tokenizer.vocab_size=512",
    "data.block_size=64",
]


def write(folder: Path, arguments: dict[str, Any], name: str = "arguments.yaml") -> Path:
    file = folder / name
    file.write_text(json.dumps(arguments) if name.endswith(".json") else yaml.safe_dump(arguments))
    return file


def recipe(folder: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], *more: str) -> Any:
    """The typed recipe made of arguments, on real data."""
    out = folder / "recipe.yaml"
    made = trireme_here(capsys, "convert-args", str(write(folder, arguments)), str(out), "--force", *more)
    assert made.returncode == 0, made.stderr
    return recipe_of(out, folder / "run", *WITH)


def test_arguments_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recipe(
        tmp_path,
        capsys,
        {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "learning_rate": "2e-5",
            "num_train_epochs": 2,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 2e-6},
            "warmup_ratio": 0.03,
            "adam_beta2": 0.95,
            "bf16": True,
            "gradient_checkpointing": True,
            "eval_strategy": "epoch",
            "save_strategy": "steps",
            "save_steps": 200,
            "save_total_limit": 3,
            "load_best_model_at_end": True,
            "metric_for_best_model": "accuracy",
            "report_to": ["tensorboard"],
            "label_smoothing_factor": 0.1,
            "max_grad_norm": 0.5,
            "dataloader_num_workers": 1,
        },
        "--nproc",
        "2",
    )
    trainer, optimizer = found.trainer, found.optimizer
    assert (trainer.micro_batch_size, trainer.global_batch_size, trainer.epochs) == (4, 16, 2.0)
    assert (optimizer["lr"], optimizer["betas"], optimizer["weight_decay"]) == (2e-5, [0.9, 0.95], 0.0)
    assert (found.scheduler.name, found.scheduler.min_lr_ratio, found.scheduler.warmup_ratio) == ("cosine", 0.1, 0.03)
    assert (found.plan.precision, found.plan.recompute) == ("bf16", "full")
    assert (trainer.eval_every, found.checkpoint.every, found.checkpoint.keep_last) == ("epoch", 200, 3)
    assert (found.checkpoint.metric, found.checkpoint.mode, "best_model" in found.callbacks) == (
        "eval_accuracy",
        "max",
        True,
    )
    assert found.task["label_smoothing"] == 0.1
    assert (trainer.max_grad_norm, found.data.num_workers, found.seed) == (0.5, 1, 42)


def test_defaults_of_the_trainer_are_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recipe(tmp_path, capsys, {"output_dir": "out"})
    assert (found.optimizer["lr"], found.scheduler.name, found.trainer.epochs) == (5e-5, "linear", 3.0)
    assert found.scheduler.warmup_ratio == 0 and found.scheduler.min_lr_ratio is None
    assert "learning_rate=5e-05" in (tmp_path / "recipe.yaml").read_text()


def test_max_steps_wins_over_epochs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = recipe(tmp_path, capsys, {"max_steps": 7, "num_train_epochs": 9})
    assert (found.trainer.max_steps, found.trainer.epochs) == (7, None)


def test_a_file_of_axolotl(tmp_path: Path) -> None:
    draft, tool = converted(
        write(
            tmp_path,
            {
                "base_model": "owner/base",
                "datasets": [{"path": "data/*.jsonl", "type": "completion", "field": "body"}],
                "val_set_size": 0.1,
                "sequence_len": 2048,
                "sample_packing": True,
                "micro_batch_size": 2,
                "gradient_accumulation_steps": 4,
                "optimizer": "adamw_bnb_8bit",
                "lr_scheduler": "cosine",
                "learning_rate": 2e-5,
                "bf16": "auto",
                "saves_per_epoch": 1,
                "evals_per_epoch": 2,
                "flash_attention": True,
            },
        )
    )
    assert tool == "axolotl" and draft.choices["optimizer"] == ["adamw_8bit"] and draft.choices["data"] == ["files"]
    wanted = {
        "model.weights": "owner/base",
        "model.attention": None,  # rows of whole documents use torch's flash attention
        "data.packing": "bins",
        "data.overflow": "drop",
        "data.source.paths": ["data/*.jsonl"],
        "data.source.text_column": "body",
        "data.held_out": 0.1,
        "data.block_size": 2048,
        "trainer.micro_batch_size": 2,
        "trainer.global_batch_size": 8,
        "trainer.epochs": 1.0,
        "optimizer.lr": 2e-5,
        "plan.precision": "bf16",
        "checkpoint.every": "epoch",
    }
    assert {key: draft.values.get(key) for key in wanted} == wanted
    assert [value for value, _ in draft.left.values()] == [2]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"packing": True}, ("bins", "drop")),
        ({"packing": True, "packing_strategy": "bfd_split"}, ("bins", "split")),
        ({"packing": True, "packing_strategy": "wrapped"}, (True, None)),
        ({"packing": False}, (False, None)),
        ({"sample_packing": True, "excess_length_strategy": "truncate"}, ("bins", "cut")),
    ],
)
def test_ways_of_packing(tmp_path: Path, given: dict[str, object], wanted: tuple[object, object]) -> None:
    draft, _ = converted(write(tmp_path, given), "transformers")
    assert (draft.values.get("data.packing"), draft.values.get("data.overflow")) == wanted


def test_chats_with_an_adapter_of_axolotl(tmp_path: Path) -> None:
    draft, _ = converted(
        write(
            tmp_path,
            {
                "base_model": "owner/base",
                "datasets": [{"path": "owner/chats", "type": "chat_template", "field_messages": "dialog"}],
                "chat_template": "chatml",
                "adapter": "qlora",
                "load_in_4bit": True,
                "lora_r": 16,
                "lora_alpha": 32,
                "lora_dropout": 0.05,
                "lora_target_linear": True,
                "sample_packing": False,
                "neftune_noise_alpha": 5,
            },
        )
    )
    chosen = {group: draft.choices[group] for group in ("adapter", "quantization", "data")}
    assert chosen == {"adapter": ["lora"], "quantization": ["nf4"], "data": ["hub_chat"]}
    wanted = {
        "data.source.path": "owner/chats",
        "data.columns": {"messages": "dialog"},
        "data.packing": False,
        "data.chat.template": "chatml",
        "model.adapter.rank": 16,
        "model.adapter.alpha": 32,
        "model.adapter.dropout": 0.05,
        "model.adapter.targets": "all-linear",
        "model.neftune_alpha": 5,
    }
    assert {key: draft.values.get(key) for key in wanted} == wanted
    assert not draft.left


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ({"lora_target_modules": "q_proj"}, "q_proj"),
        ({"lora_target_modules": ["q_proj"]}, ["q_proj"]),
        ({"lora_target_linear": True}, "all-linear"),
        ({"lora_target_linear": False}, None),
    ],
)
def test_layers_with_an_adapter(tmp_path: Path, given: dict[str, Any], targets: object) -> None:
    draft, _ = converted(write(tmp_path, {"base_model": "owner/base", "adapter": "lora", **given}))
    assert draft.values.get("model.adapter.targets") == targets


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"load_in_4bit": "maybe"}, "load_in_4bit"),
        ({"lora_target_modules": 3}, "lora_target_modules"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"datasets": [{"path": "a\0b"}]}, r"datasets\.0\.path"),
    ],
)
def test_values_that_no_recipe_can_hold(tmp_path: Path, given: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}"):
        converted(write(tmp_path, {"base_model": "owner/base", "adapter": "lora", **given}))


def test_unconverted_arguments_keep_their_own_names(tmp_path: Path) -> None:
    given = {"evals_per_epoch": 4, "saves_per_epoch": 2, "load_in_4bit": True, "rl": "orpo"}
    draft, _ = converted(write(tmp_path, {"base_model": "owner/base", "datasets": [{"path": None}], **given}))
    assert {*given, "datasets"} <= draft.left.keys()
    draft, _ = converted(write(tmp_path, {"model_name_or_path": "owner/base", "loss_type": "cpo"}))
    assert "loss_type" in draft.left and "rl" not in draft.left


@pytest.mark.parametrize(
    ("theirs", "ours", "remark"),
    [
        ("paged_adamw_8bit", "adamw_8bit", "optimizer=adamw_8bit is taken: its state stays on the GPU, without pages"),
        ("lion_8bit", "lion", "optimizer=lion is taken: its state is kept in 32 bits"),
        ("adamw_bnb_8bit", "adamw_8bit", None),
    ],
)
def test_an_optimizer_that_differs_is_taken_with_a_remark(
    tmp_path: Path, theirs: str, ours: str, remark: str | None
) -> None:
    draft, _ = converted(write(tmp_path, {"learning_rate": 1e-3, "optim": theirs}))
    assert draft.choices["optimizer"] == [ours]
    assert draft.left == ({} if remark is None else {"optim": (theirs, remark)})


def test_kernels_of_the_loss(tmp_path: Path) -> None:
    for name, taken in {
        "cut_cross_entropy": "chunked",
        "chunked_cross_entropy": "chunked",
        "liger_fused_linear_cross_entropy": "liger",
    }.items():
        draft, _ = converted(write(tmp_path, {"base_model": "owner/base", name: True}))
        assert draft.values["model.loss"] == taken and not draft.left
    draft, _ = converted(write(tmp_path, {"use_liger_kernel": True}))
    assert draft.left["use_liger_kernel"][1].startswith("write model.loss: for losses of tokens")


@pytest.mark.parametrize(
    ("template", "ours", "left"),
    [
        ("tokenizer_default", None, []),
        ("llama3", "llama3", []),
        ("qwen_25", "qwen2_5", []),
        ("metharme", None, ["chat_template"]),
        ("tokenizer_default_fallback_chatml", None, ["chat_template"]),
    ],
)
def test_names_of_templates(tmp_path: Path, template: str, ours: str | None, left: list[str]) -> None:
    draft, _ = converted(write(tmp_path, {"base_model": "owner/base", "chat_template": template, "lora_r": 4}))
    assert list(draft.left) == left and draft.values.get("data.chat.template") == ours
    assert all(name in template_names() for name in TEMPLATES.values())


def test_what_a_data_set_of_axolotl_says_of_its_chats(tmp_path: Path) -> None:
    chats = {
        "path": "chats.jsonl",
        "type": "chat_template",
        "field_messages": "conversations",
        "field_tools": "functions",
        "message_property_mappings": {"role": "from", "content": "value"},
        "roles": {"user": ["human", "customer"], "assistant": ["agent"]},
        "roles_to_train": ["assistant", "user"],
        "shards": 3,
    }
    draft, tool = converted(write(tmp_path, {"base_model": "owner/base", "datasets": [chats]}))
    assert tool == "axolotl" and draft.choices["data"] == ["chat"]
    wanted = {
        "data.source.paths": ["chats.jsonl"],
        "data.columns": {"messages": "conversations", "tools": "functions"},
        "data.chat.role_names": {"human": "user", "customer": "user", "agent": "assistant"},
        "data.chat.loss": "roles",
        "data.chat.roles": ["assistant", "user"],
    }
    assert {key: draft.values.get(key) for key in wanted} == wanted
    assert list(draft.left) == ["datasets.shards"]
    chats |= {"message_property_mappings": {"role": "who", "content": "what"}}
    draft, _ = converted(write(tmp_path, {"base_model": "owner/base", "datasets": [chats]}))
    assert "datasets.message_property_mappings" in draft.left


def test_a_file_of_deepspeed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe names DeepSpeed's file and agrees with it, so the check finds no contradiction."""
    file = write(
        tmp_path,
        {
            "train_batch_size": 8,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 0.7,
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": 3e-4, "betas": [0.9, 0.98], "eps": 1e-8, "weight_decay": 0.1},
            },
            "scheduler": {
                "type": "WarmupDecayLR",
                "params": {
                    "warmup_min_lr": 0,
                    "warmup_max_lr": 3e-4,
                    "warmup_num_steps": 5,
                    "total_num_steps": 50,
                    "warmup_type": "linear",
                },
            },
        },
        "ds.json",
    )
    out = tmp_path / "recipe.yaml"
    made = trireme_here(capsys, "convert-args", str(file), str(out), "--nproc", "2")
    assert made.returncode == 0 and "settings of deepspeed" in made.stdout
    found = recipe_of(out, tmp_path / "run", *WITH)
    assert (found.trainer.global_batch_size, found.trainer.micro_batch_size, found.trainer.max_steps) == (8, 2, 50)
    assert (found.plan.name, found.plan.precision, found.plan.deepspeed) == ("zero2", "bf16", str(file))
    assert (found.optimizer["lr"], found.trainer.max_grad_norm, found.scheduler.warmup_steps) == (3e-4, 0.7, 5)
    _, problems = deepspeed_config(found.plan, _values(found), 2)
    assert not problems


def _values(found: Any) -> Any:
    parts = found.trainer, found.optimizer, found.scheduler, found.ema
    return recipe_values(*parts, hf_config(found.model), found.data, found.trainer.max_steps)


def test_every_key_of_axolotl_is_listed() -> None:
    names = (Path(__file__).parents[2] / "helpers" / "axolotl_keys.txt").read_text().splitlines()[1:]
    assert len(names) > 380 and not [name for name in names if not find(name)]


def test_a_file_of_accelerate(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {
            "compute_environment": "LOCAL_MACHINE",
            "distributed_type": "FSDP",
            "fsdp_config": {"fsdp_sharding_strategy": "FULL_SHARD", "fsdp_version": 1},
            "mixed_precision": "bf16",
            "num_machines": 1,
            "num_processes": 2,
        },
    )
    draft, tool = converted(file)
    assert tool == "accelerate" and draft.choices["plan"] == ["fsdp_full_shard"]
    assert draft.values["plan.precision"] == "bf16"


def test_every_argument_of_the_trainer_is_taken_or_said(tmp_path: Path) -> None:
    """A value that is not the default of its field ends up in the recipe, or is listed with what to do."""
    silent = {
        "overwrite_output_dir",
        "greater_is_better",
        "hub_model_id",
        "hub_private_repo",
        "hub_strategy",
        "hub_always_push",
    }
    for field in dataclasses.fields(TrainingArguments):
        value = field.default if isinstance(field.default, float | int | str) else None
        given = not value if isinstance(value, bool) else (value + 1 or 3 if isinstance(value, int | float) else "x")
        if field.name in {*silent, "run_name"} or given is False:
            continue
        try:
            draft, _ = converted(write(tmp_path, {field.name: given}))
        except UserError as error:
            assert field.name in str(error)
            continue
        said = {key.split(".")[0] for key in draft.left}
        usual, _ = converted(write(tmp_path, {"run_name": "x"}))
        moved = draft.values != usual.values or draft.choices != usual.choices
        assert moved or field.name in said, field.name


def test_preferences_of_axolotl_and_of_trl(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        {
            "base_model": "path/to/base",
            "rl": "dpo",
            "rl_beta": 0.3,
            "dpo_label_smoothing": 0.1,
            "rpo_alpha": 0.5,
            "datasets": [{"path": "a/b", "type": "chat_template.default", "field_chosen": "better", "split": "train"}],
            "micro_batch_size": 1,
        },
    )
    draft, tool = converted(file)
    assert tool == "axolotl" and draft.choices["task"] == ["dpo"] and draft.choices["data"] == ["hub_preferences"]
    assert draft.values["task.beta"] == 0.3 and draft.values["task.label_smoothing"] == 0.1
    assert draft.values["task.sft"] == 0.5 and draft.values["data.columns"] == {"chosen": "better"}
    assert not {"rl", "datasets.type"} & draft.left.keys()
    kto, _ = converted(write(tmp_path, {"rl": "kto", "base_model": "b", "kto_desirable_weight": 0.7}))
    assert kto.choices["task"] == ["kto"] and kto.values["task.desirable_weight"] == 0.7
    trl, _ = converted(write(tmp_path, {"loss_type": "sigmoid_norm", "beta": 2.0, "precompute_ref_log_probs": True}))
    assert trl.choices["task"] == ["dpo"] and trl.values["task.length_normalised"] is True
    assert trl.values["task.beta"] == 2.0 and "task.reference=start" in trl.left["precompute_ref_log_probs"][1]
    other, _ = converted(write(tmp_path, {"rl": "grpo", "base_model": "b"}))
    assert "preferences are task=dpo" in other.left["rl"][1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("- a\n- b\n", "is not a mapping"),
        ("{}", "has no arguments"),
        ("1: 2", "is not a mapping"),
    ],
)
def test_what_is_no_file_of_arguments_is_refused(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    refused(trireme_here(capsys, "convert-args", str(tmp_path / "a.yaml")), "FILE", words)


def test_a_recipe_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = write(tmp_path, {"max_steps": 3}), tmp_path / "r.yaml"
    out.write_text("mine")
    refused(trireme_here(capsys, "convert-args", str(file), str(out)), "exists already")
    refused(trireme_here(capsys, "convert-args", str(file), str(tmp_path / "r")), "is not a name of a recipe")
    refused(trireme_here(capsys, "convert-args", str(tmp_path / "none.yaml")), "cannot be read")
    assert out.read_text() == "mine"
    printed = trireme_here(capsys, "convert-args", str(file))
    assert printed.returncode == 0 and yaml.safe_load(printed.stdout)["trainer"]["max_steps"] == 3


ODD = (3, "x", [1], {"a": 1}, {"a": {"b": 3}}, True, [], {}, [{"a": 3}], 2.5, float("inf"))


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_no_odd_value_shows_an_error_of_python(tmp_path: Path, value: Any) -> None:
    """A value is taken over, left with a remark, or refused by the name of its argument, whatever it is."""
    asked = [({name: value}, name) for name in RULES]
    for key in KEYS | CHAT_KEYS | CHAT_COLUMNS.keys():
        asked.append(({"datasets": [{"path": "a.jsonl", "type": "chat_template", key: value}]}, f"datasets.{key}"))
    for given, name in asked:
        try:
            converted(write(tmp_path, given))
        except UserError as error:
            [problem] = error.problems
            assert isinstance(problem, Problem) and problem.fix
            assert problem.field.replace(".0.", ".").startswith(name) and problem.why in KINDS, problem


KINDS = (
    *("is not a number", "is not a list", "is not a mapping"),
    *("is not finite", "is neither true nor false", "is neither a name of modules nor a list of names"),
)


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"datasets": [{"path": "a.jsonl", "type": "chat_template", "roles": {"user": 3}}]}, "datasets.roles.user", 3),
        ({"max_steps": "many", "num_train_epochs": 2}, "max_steps", "many"),
        ({"logging_strategy": "steps", "logging_steps": "few"}, "logging_steps", "few"),
        ({"adam_beta1": "x", "adam_beta2": 0.9}, "adam_beta1", "x"),
        ({"learning_rate": 1e-3, "lr_scheduler_kwargs": {"min_lr": "x"}}, "lr_scheduler_kwargs.min_lr", "x"),
    ],
)
def test_a_wrong_value_is_named_with_its_own_key(tmp_path: Path, given: Any, field: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        converted(write(tmp_path, given))
    [problem] = caught.value.problems
    assert isinstance(problem, Problem) and (problem.field, problem.value) == (field, value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "base_model: x\n  datasets: [a, b\n", "a.yaml:2:11\n  is not YAML: mapping values"),
        ("a.yaml", "b: c\na: x\x01\n", "a.yaml:2:5\n  is not YAML: the character U+0001"),
        ("a.json", '{"a": 1,\n "b": }', "a.json:2:7\n  is not JSON: expecting value"),
        ("a.json", "[" * 100_000, "a.json\n  cannot be read: its brackets are nested too deeply"),
        ("a.yaml", "[" * 10_000, "a.yaml\n  is nested too deeply"),
        ("a.yaml", "a: 2026-99-01", "a.yaml\n  cannot be read: month must be in 1..12"),
    ],
)
def test_a_syntax_error_is_named_with_its_place(
    name: str, content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    result = trireme_here(capsys, "convert-args", str(tmp_path / name))
    refused(result, words)
    assert len(result.stderr.splitlines()) == 3 and "^" not in result.stderr


AXOLOTL = {
    "base_model": "m",
    "datasets": [{"path": "a.jsonl", "type": "completion"}],
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
}
ACCELERATE = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_machines": 1}
ZERO = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("content", "ranks", "plan", "sizes"),
    [
        (AXOLOTL, 2, "ddp", (2, 16)),
        (AXOLOTL, 1, "single", (2, 8)),
        (AXOLOTL | {"fsdp": ["full_shard"]}, 2, "fsdp_full_shard", (2, 16)),
        ({"output_dir": "o", "per_device_train_batch_size": 3}, 2, "ddp", (3, 6)),
        ({"base_model": "m", "batch_size": 4}, 2, "ddp", (4, 8)),
        ({"base_model": "m", "batch_size": 12}, 1, "single", (6, 12)),
        (ACCELERATE | {"num_processes": 2}, 2, "ddp", (8, 16)),
        (ACCELERATE | {"num_processes": 2}, None, "ddp", (8, 16)),
        (ACCELERATE | {"num_processes": 3}, 4, "ddp", (8, 32)),
        (ACCELERATE | {"distributed_type": "NO", "num_processes": 1}, 2, "ddp", (8, 16)),
        (ZERO, 2, "zero2", (8, 16)),
        (ZERO | {"train_batch_size": 12}, 2, "zero2", (6, 12)),
    ],
)
def test_ranks_can_train_what_is_made(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: dict[str, Any],
    ranks: int | None,
    plan: str,
    sizes: Any,
) -> None:
    name = "ds.json" if "zero_optimization" in content else "arguments.yaml"
    file, out = write(tmp_path, content, name), tmp_path / "recipe.yaml"
    made = trireme_here(capsys, "convert-args", str(file), str(out), *([f"--nproc={ranks}"] if ranks else []))
    asked = f" --nproc {ranks or 2}" if ranks != 1 else ""
    assert made.returncode == 0 and f"next: trireme check {out}{asked}" in made.stdout.splitlines()
    found = recipe_of(
        out, tmp_path / "run", *WITH, "model.weights=null", "trainer.epochs=1", "data.source.text_column=text"
    )
    assert (found.plan.name, (found.trainer.micro_batch_size, found.trainer.global_batch_size)) == (plan, sizes)
    written = out.read_text()
    for line in (line for line in made.stdout.splitlines() if line.startswith("  chosen: ")):
        assert line.removeprefix("  chosen: ").split()[0] in written.partition("# Chosen")[2]
    assert ("chosen: plan=ddp" in made.stdout) == (plan == "ddp")
    micro, whole = sizes
    assert whole % (micro * (ranks or 2)) == 0


def test_a_batch_in_a_file_of_deepspeed_is_never_changed(tmp_path: Path) -> None:
    file = write(tmp_path, ZERO | {"train_batch_size": 12, "gradient_accumulation_steps": 3}, "ds.json")
    draft, _ = converted_soundly(file, ranks=2)
    assert draft.values["trainer.micro_batch_size"] == 2 and draft.values["trainer.global_batch_size"] == 12
    for sizes, of in (
        ({"train_batch_size": 7}, "2 data ranks"),
        ({"train_batch_size": 12, "train_micro_batch_size_per_gpu": 4}, "2 data ranks with micro-batches of 4"),
    ):
        draft, _ = converted_soundly(write(tmp_path, ZERO | sizes, "ds.json"), ranks=2)
        assert draft.left["train_batch_size"][1].startswith(f"{of} cannot share it: change it in the file")
        assert not draft.chosen


def test_a_batch_that_ranks_cannot_share_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, {"base_model": "m", "batch_size": 5, "micro_batch_size": 2})
    made = trireme_here(capsys, "convert-args", str(file), str(tmp_path / "recipe.yaml"), "--nproc", "2")
    why = "the file has 10, which 2 data ranks with micro-batches of 2 cannot share"
    assert f"  chosen: trainer.global_batch_size=12   {why}" in made.stdout.splitlines()
