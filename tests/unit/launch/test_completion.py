"""Tests of shell completion of commands, recipes, options, keys and values, also in a real bash."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trireme.launch.cli import COMMANDS
from trireme.launch.complete_words import complete, script
from trireme.launch.find_recipes import config_folders, find_recipe

RECIPE = "pretrain/persimmon_stdlib"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "pretrain/pers"], [RECIPE]),
        (["train", RECIPE, "plan=s"], ["plan=single"]),
        (["train", "--nproc", "2", RECIPE, "trainer.max_s"], ["trainer.max_steps="]),
        (["check", RECIPE, "plan=ddp", "optimizer.l"], ["optimizer.lr="]),
        (["train", RECIPE, "scheduler.name="], ["scheduler.name=cosine"]),
        (["train", RECIPE, "--mul"], ["--multirun"]),
        (["launch", RECIPE, "launch=s"], ["launch=slurm"]),
        (["launch", RECIPE, "launch.nod"], ["launch.node_storage=", "launch.nodes="]),
        (["launch", RECIPE, "--dry"], ["--dry-run"]),
        (["evaluate", RECIPE, "--j"], ["--json"]),
        (["evaluate", "--checkpoint", "runs/x", RECIPE, "plan=zero2"], ["plan=zero2", "plan=zero2_offload"]),
        (["train", "no/such", "tr"], []),
        (["recipes", ""], []),
        (["no-such-command", ""], []),
        (["export", "runs/x", "out", "--dtype", "b"], ["bf16"]),
        (["train", RECIPE, "--cfg", ""], ["job", "hydra", "all"]),
        (["train", RECIPE, "--cfg", "job", "optimizer.l"], ["optimizer.lr="]),
        (["train", "--recipe-dir", ""], []),  # the shell completes folders
        (["completion", "z"], ["zsh"]),
    ],
)
def test_completion(words: list[str], expected: list[str]) -> None:
    assert complete(words, COMMANDS) == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_is_completed(name: str) -> None:
    lines = [line for line in COMMANDS[name].parser().format_help().splitlines() if line.startswith("  -")]
    shown = [option for line in lines for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", line.strip().split("  ")[0])]
    assert shown and sorted(complete([name, "--"], COMMANDS)) == sorted(shown)


def test_options_are_completed_without_heavy_imports() -> None:
    program = (
        "import sys; from trireme.launch.cli import COMMANDS; from trireme.launch.complete_words import complete; "
        "[complete([name, '--'], COMMANDS) for name in COMMANDS]; "
        "print(*{'hydra', 'torch', 'transformers', 'pydantic', 'yaml'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "\n"


WORDS = (
    "", "s", "plan=", "plan=d", "trainer.", "trainer.max_s", "model.config.", "data.source.", "scheduler.name=",
    "trainer.eval_at_end=", "optimizer.betas.", "optimizer.betas.0=", "+ema", "nothing.", "callbacks.flow.",
)  # fmt: skip


@pytest.mark.parametrize("before", [[], ["plan=ddp", "optimizer=sgd"]], ids=["plain", "choices"])
def test_answers_are_those_of_hydra(before: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin
    from trireme.launch.run_hydra import register_schema
    from trireme.launch.searchpath import added_folders

    monkeypatch.setenv("TRIREME_CACHE", str(tmp_path))
    path = find_recipe(RECIPE)
    register_schema()
    with (
        added_folders(config_folders(path, [])[1:]),
        initialize_config_dir(str(path.parent.resolve()), version_base="1.3"),
    ):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        theirs = {word: plugin._query(config_name=path.stem, line=" ".join([*before, word])) for word in WORDS}
    for word in WORDS:
        expected = [each for each in theirs[word] if not each.startswith(("hydra", "_target_")) and each != "base="]
        assert [*complete(["train", RECIPE, *before, word], COMMANDS)] == expected, word


def test_keys_are_completed_without_hydra_once_a_recipe_is_known(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    environment = {**os.environ, "TRIREME_CACHE": str(tmp_path / "cache")}
    program = (
        "import sys; from trireme.launch.complete_words import complete; from trireme.launch.cli import COMMANDS; "
        "print(complete(sys.argv[1:], COMMANDS)); "
        "print(*{'hydra', 'torch', 'pydantic'} & set(sys.modules))"
    )

    def completed(word: str) -> list[str]:
        command = [sys.executable, "-c", program, "train", str(recipe), word]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()

    recipe.write_text("defaults: [/base, _self_]\nmodel: {family: llama, config: {hidden_size: 8}}\n")
    assert completed("model.config.")[0] == "['model.config.hidden_size=']"
    assert completed("model.config.h") == ["['model.config.hidden_size=']", ""]
    recipe.write_text("defaults: [/base, _self_]\nmodel: {family: llama, config: {vocab_size: 8}}\n")
    assert completed("model.config.")[0] == "['model.config.vocab_size=']"


def test_hidden_commands_stay_hidden() -> None:
    assert not [name for name in complete([""], COMMANDS) if name.startswith("_")]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"), [("trireme gen", "generate"), (f"trireme train {RECIPE} plan=dd", "ddp")]
)
def test_script_in_bash(line: str, expected: str, tmp_path: Path) -> None:
    command = tmp_path / "trireme"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trireme.launch.cli "$@"\n')
    command.chmod(0o755)
    program = (
        f"{script('bash')}\nCOMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _trireme; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell: str) -> None:
    assert "trireme __complete" in script(shell)
