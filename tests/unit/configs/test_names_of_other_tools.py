"""Tests of the advice in errors about unknown recipe keys. A name from another tool (transformers, DeepSpeed,
accelerate) is answered with trireme's own key, and a misspelt key with the nearest one.

The list of other tools' names is complete, and the keys that it points to exist.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Callable

import pytest
from helpers.command import refused, trireme_here
from helpers.recipes import TINY
from trireme.configs.key_list import group_options, keys
from trireme.configs.names_of_other_tools import FILE, OtherName, _file, find, tools
from trireme.configs.schema import RecipeConfig
from trireme.configs.suggest import nearest_key
from trireme.configs.validate import schema_paths
from trireme.configs.values import nearest
from trireme.launch.commands.table import COMMANDS

NAMES = [name for tool in tools() for name in tool.names]
GROUPS = ("optimizer", "scheduler", "plan", "tracker", "data", "callbacks")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda *overrides: trireme_here(capsys, "check", str(TINY), *overrides)


def test_every_field_of_training_arguments_is_listed() -> None:
    from transformers import TrainingArguments

    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert names <= {name.name for name in tools()[0].names}


def test_every_key_and_option_of_accelerate_is_listed() -> None:
    from accelerate.commands.config.config_args import ClusterConfig
    from accelerate.commands.launch import launch_command_parser

    names = {field.name for field in dataclasses.fields(ClusterConfig)}
    names |= set(vars(launch_command_parser().parse_args(["train"]))) - {"nondefault"}
    assert not [name for name in names if not find(name)]


def test_every_key_of_deepspeed_is_listed() -> None:
    pytest.importorskip("deepspeed")
    from trireme.parallel.zero.json_keys import known_keys

    tree = known_keys()
    assert not [name for name in [*tree, *(tree["zero_optimization"] or {})] if not find(name)]


def test_names_of_trireme_in_the_list_exist() -> None:
    paths = {key.path for key in keys()}
    paths |= {path.rpartition(".")[0] for path in paths}
    options = {word for name in COMMANDS for word in COMMANDS[name].parser().format_help().split()}
    for name in NAMES:
        if name.ours.startswith("trireme "):
            assert name.ours.split()[1] in COMMANDS, name
        elif name.ours.startswith("--"):
            assert name.ours in options, name
        else:
            assert name.ours == "" or name.ours in paths, name
    for group, values in _file()["values"].items():
        options = group_options(group)
        assert not options or all(" " in ours or "=" in ours or ours in options for ours in values.values()), group


def test_advice_names_what_exists() -> None:
    """Keys and options of groups that advice names are there: advice must not outlive what it is about."""
    paths = {key.path for key in keys()}
    wrong: list[tuple[str, str]] = []
    for name in NAMES:
        for key, value in re.findall(r"(?<![\w.])([a-z_]+(?:\.\w+)*)=(\w+)?", name.how):
            options = group_options(key)
            known = options and (not value or value == "NAME" or value in options)
            if not known and key not in paths and not key.startswith(("model.config.", "CUDA_")):
                wrong.append((name.name, f"{key}={value}"))
    assert not wrong


def test_the_file_is_one_list_without_double_names() -> None:
    lines = FILE.read_text().splitlines()
    for tool in tools():
        assert len({name.name for name in tool.names}) == len(tool.names)
    start = lines.index("values:")
    entries = [line for line in lines[:start] if line.startswith("    ") and line[4].isalpha() and ":" in line]
    assert len(entries) >= len(NAMES), "YAML takes the last of two equal keys without a word"


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("trainer.bf16=true", "write plan.precision=bf16"),
        ("trainer.fp16=false", "leave it out: it is off"),
        ("+bf16=true", "write plan.precision=bf16"),
        ("trainer.warmup_steps=5", "did you mean scheduler.warmup_steps?"),
        ("trainer.num_train_epochs=3", "write trainer.epochs=3"),
        ("learning_rate=2e-5", "write optimizer.lr=2e-05"),
        ("optimizer.learning_rate=2e-5", "write optimizer.lr=2e-05"),
        ("data.source.learning_rate=2e-5", "write optimizer.lr=2e-05"),
        ("trainer.gradient_accumulation_steps=4", "write trainer.global_batch_size: "),
        ("per_device_train_batch_size=4", "write trainer.micro_batch_size=4"),
        ("report_to=wandb", "write tracker=wandb, tracker=[wandb,tensorboard], tracker=all or none"),
        ("data.neftune_noise_alpha=5", "write model.neftune_alpha=5"),
        ("trainer.gradient_clipping=1.0", "write trainer.max_grad_norm=1.0"),
        ("+lora.r=8", "write model.adapter: adapter=lora"),
        ("model.lora_r=8", "write model.adapter.rank=8"),
        ("model.load_in_4bit=true", "write model.quantization: quantization=nf4 adapter=lora"),
        ("data.sequence_len=128", "write data.block_size=128"),
        ("plan.deepspeed.zero_optimization.stage=2", "its keys stand in plan.deepspeed itself"),
        ("plan.epochs=3", "did you mean trainer.epochs?"),
        ("trainer.lr_scheduler_type=cosine", "scheduler=linear"),
        ("scheduler._target_=mine.Triangle", "write scheduler=own scheduler.factor._target_=mine.Triangle"),
        ("plan=fsdpp", "did you mean plan=fsdp_full_shard?"),
        ("plan=deepspeed", "write plan=zero2"),
        (
            "model.use_liger_kernel=true",
            "write model.loss: for losses of tokens on a GPU model.loss=liger; its other kernels are",
        ),
        ("+use_ray=true", "leave it out: Ray starts no ranks here; trireme search RECIPE search=ray tunes with it"),
        ("optimizer=paged_adamw_8bit", "optimizer=adamw_8bit; its state stays on the GPU, without pages"),
        ("optimizer=adamw_torch", "write optimizer=adamw"),
        ("optimizer=adamv", "did you mean optimizer=adamw?"),
        ("scheduler=cosine_with_min_lr", "scheduler=cosine scheduler.min_lr_ratio=0.1"),
        ("tracker=comet_ml", "write tracker=comet"),
        ("plan.precision=bfloat16", "write plan.precision=bf16"),
        ("plan.recompute=true", "write plan.recompute=full"),
        ("trainer.eval_every=steps", "a number of steps"),
    ],
)
def test_a_name_of_another_tool_is_answered_with_triremes_name(
    check: Callable[..., subprocess.CompletedProcess[str]], override: str, fix: str
) -> None:
    refused(check(override), f"fix: {fix}" if not fix.startswith(("scheduler=l", "its keys")) else fix)


def test_a_near_key_beside_it_comes_before_the_same_name_elsewhere(
    check: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    refused(check("search=optuna", "search.trial=3"), "fix: did you mean search.trials, or run.trial?")


def test_the_argument_of_a_component_of_ones_own_keeps_its_answer(
    check: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = check("+callbacks.mine._target_=helpers.callbacks.StopAfter", "+callbacks.mine.debug=1")
    assert "transformers" not in result.stderr


def test_nearest_never_takes_a_worse_key() -> None:
    known = list(schema_paths(RecipeConfig))
    trainer = [path.partition(".")[2] for path in known if path.startswith("trainer.")]
    assert nearest_key("warmup_steps", trainer, "trainer", known) == "scheduler.warmup_steps"
    assert nearest_key("max_step", trainer, "trainer", known) == "trainer.max_steps"
    assert nearest_key("blocksize", trainer, "trainer", known) == "data.block_size"
    assert nearest_key("zzz", trainer, "trainer", known) is None
    assert nearest("fsdpp", ["ddp", "dp_tp", "fsdp_full_shard", "tp_sp"]) == "fsdp_full_shard"
    assert nearest("Max-Steps", ["max_steps"]) == "max_steps"


def test_every_typo_of_a_key_finds_it() -> None:
    """A letter too few, a letter too many, two letters in the wrong order."""
    known = list(schema_paths(RecipeConfig))
    for path in known:
        parent, _, name = path.rpartition(".")
        siblings = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == parent]
        for typed in (name[:-1], f"{name}s", name[:-2] + name[-1] + name[-2]):
            if len(name) >= 6 and typed not in siblings:
                assert nearest_key(typed, siblings, parent, known) == path, typed


def test_options_under_names_of_other_tools_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--learning_rate", "2e-5", "--num_processes=2", "--bf16", "--nprocs", "2")
    said = trireme_here(capsys, "train", str(TINY), *given).stderr
    for option, fix in {
        "--learning_rate = '2e-5'": "write optimizer.lr=2e-5",
        "--num_processes = '2'": "write --nproc N",
        "--bf16": "write plan.precision=bf16",
        "--nprocs = '2'": "did you mean --nproc?",
    }.items():
        assert f"{option}\n     is not an option of trireme train\n     fix: {fix}\n" in said, said


def test_a_false_switch_is_left_out() -> None:
    assert OtherName("transformers", "bf16", "plan.precision", "plan.precision=bf16").fix(False).startswith("leave it")
    assert OtherName("transformers", "tf32", "plan.tf32", "").fix(False) == "write plan.tf32=false"
