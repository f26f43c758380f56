"""Tests of the command line: exit codes, error messages, help, listings, and imports that some commands must avoid."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import ROOTS, refused, trireme
from helpers.recipes import TINY
from trireme.launch.cli import main
from trireme.launch.commands.table import COMMANDS, HEADINGS
from trireme.launch.overrides import last_of_each
from trireme.version import __version__


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_help_shows_examples_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from trireme.launch.cli import main; main(['--help']); "
        "print(sorted({'torch', 'transformers', 'hydra', 'pydantic', 'rich', 'yaml'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert "trireme train pretrain/persimmon_stdlib plan=ddp --nproc 2" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"


def test_checking_a_recipe_goes_without_what_only_ranks_need() -> None:
    """Those imports take seconds, before any process of a run can start."""
    arguments = ["check", str(TINY), ROOTS, "plan=ddp", "--nproc", "2"]
    program = (
        f"import sys; from trireme.launch.cli import main; code = main({arguments!r}); import trireme.launch.agent; "
        "print(code, {'transformers.modeling_utils', 'torch.distributed.tensor', 'torch._dynamo', 'datasets'} "
        "& set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert result.stdout.splitlines()[-1] == "0 set()", result.stdout + result.stderr


def test_help_fits_a_terminal_and_groups_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 80 for line in out.splitlines())
    headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [f"{heading}:" for heading in HEADINGS] + ["examples:"]
    assert out.index("on a SLURM cluster:") < out.index("  jobs ") < out.index("  cancel ") < out.index("this machine:")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"examples:\n  {'eval' if name == 'completion' else 'trireme'}" in out
    assert main(["help", "nonsense"]) == 2


def test_only_the_recipe_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "launch", "check", "batch-size", "evaluate"):
        assert main([name]) == 2
        assert "RECIPE\n  is missing\n" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["plans", "--help"])
    assert "[RECIPE] [key=value ...]" in capsys.readouterr().out


def test_jobs_without_a_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM is not installed, or its commands are there without a cluster."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for command in (["jobs"], ["cancel", "12"]):
        assert main(command) == 2
        assert "SLURM\n  is not installed here" in capsys.readouterr().err
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 'fatal: Could not establish a configuration source' >&2\nexit 1\n")
    squeue.chmod(0o755)
    for command in (["jobs"], ["cancel", "12"]):
        assert main(command) == 2
        assert "SLURM\n  is not set up here" in capsys.readouterr().err


def test_the_package_is_a_command_too() -> None:
    command = [sys.executable, "-m", "trireme", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"trireme {__version__}\n"


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"trireme {__version__}\n"
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_all_problems_at_once_in_a_real_process() -> None:
    result = trireme(
        "train",
        str(TINY),
        ROOTS,
        "max_steps=5",
        "trainer.micro_batch_size=ten",
        "plan=ddpp",
        "model.config.vocab_siz=3",
        "callbacks.metrics.fiel=1",
        "data.tokenizer.vocabsize=3",
        "--nproc",
        "2",
    )
    refused(
        result,
        "6 problems",
        "did you mean trainer.max_steps?",
        "expected an integer",
        "did you mean plan=ddp?",
        "did you mean model.config.vocab_size?",
        "callbacks.metrics.fiel",
        "did you mean data.tokenizer.vocab_size?",
    )


def test_refused_recipe_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(TINY), ROOTS, f"run.dir={tmp_path / 'run'}", "trainer.global_batch_size=7"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "trainer.global_batch_size = 7" in message
    assert "set trainer.global_batch_size to 6 or 8, or trainer.micro_batch_size to 1 or 7" in message
    assert "Traceback" not in message
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), ROOTS, "sede=1", "--debug"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" in message
    assert "did you mean seed?" in message


def test_check_describes_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), "plan=ddp", "--nproc", "2", ROOTS]) == 0
    out = capsys.readouterr().out
    assert "ddp, 2 processes" in out
    assert "8 samples = 2 micro-batches of 2 on 2 data ranks" in out


def test_too_many_processes_for_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), ROOTS, "--nproc", "2"]) == 2
    assert "got 2 processes" in capsys.readouterr().err


def test_missing_values_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), "data=files"]) == 2
    assert "data.source.paths\n  is required" in capsys.readouterr().err


def test_cfg_and_info_print_and_train_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(TINY), "trainer.stop_at=3", "--cfg", "job", "--package", "trainer"]) == 0
    out = capsys.readouterr().out
    assert "stop_at: 3" in out
    assert "log_every: 1" in out
    assert main(["train", str(TINY), "--cfg", "job", "--resolve"]) == 0
    assert "dir: runs/tiny" in capsys.readouterr().out
    assert main(["train", str(TINY), "plan=ddp", "--info", "defaults"]) == 0
    assert "plan/ddp" in capsys.readouterr().out


def test_multirun_refuses_all_jobs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train",
        str(TINY),
        ROOTS,
        f"run.dir={tmp_path / 's'}",
        "--multirun",
        "trainer.global_batch_size=8,9,11",
    ]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "trainer.global_batch_size = 9" in message
    assert "trainer.global_batch_size = 11" in message
    assert not (tmp_path / "s").exists()


def test_unwritable_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", str(TINY), ROOTS, f"run.dir={tmp_path / 'file' / 'run'}"]) == 2
    assert "run.dir" in capsys.readouterr().err


def test_nproc_under_a_launcher_must_agree(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", str(TINY), ROOTS, "plan=ddp", "--nproc", "3"]) == 2
    assert "the launcher has started 2 ranks" in capsys.readouterr().err


def test_listings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "pretrain/persimmon_stdlib" in out
    assert "Pretrains a small Persimmon" in out
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "https://arxiv.org/abs/2204.06745" in out
    assert "llama_tiny" in out


def test_generate_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "none"), "--prompt", "x"]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("")
    assert main(["generate", str(tmp_path / "mine.yaml"), "--prompt", "x"]) == 2
    assert "is a file, not a folder" in capsys.readouterr().err
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert (
        main(
            [
                "generate",
                str(tmp_path),
                "--prompt",
                "x",
                "--top-k",
                "-1",
                "--temperature",
                "-1",
                "--max-new-tokens",
                "0",
            ]
        )
        == 2
    )
    assert "3 problems" in capsys.readouterr().err


def test_a_device_map_needs_accelerate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)  # as if it were not installed
    assert main(["generate", str(tmp_path), "--prompt", "x", "--device-map", "auto"]) == 2
    assert "pip install accelerate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "runs/x"], ["--prompt", 'trireme generate runs/x --prompt "def main("']),
        (["keys", "nonsense"], ["no key begins with this", "keys begin with", "optimizer"]),
        (["keys", "optimizer.lrr"], ["did you mean optimizer.lr?"]),
        (["check", "my.yaml", "--resume"], ["--resume\n  is an option of trireme train, not of trireme check"]),
        (["train", "my.yaml", "--checkpoint", "x"], ["--checkpoint = 'x'\n  is an option of trireme evaluate"]),
    ],
)
def test_what_is_missing_or_misplaced_is_told(
    words: list[str], told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in told), message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("train my.yaml --nprc 2", "--nprc = '2'\n  is not an option of trireme train\n  fix: did you mean --nproc?\n"),
        ("train my.yaml --nprc=2", "--nprc = '2'\n  is not an option of trireme train\n  fix: did you mean --nproc?\n"),
        ("train my.yaml --nproc x", "--nproc = 'x'\n  is not a whole number\n  fix: write a whole number\n"),
        ("train my.yaml --nproc", "--nproc\n  has no value\n  fix: write --nproc N\n"),
        ("export a b --dtype", "--dtype\n  has no value\n  fix: write --dtype fp32 or bf16 or fp16\n"),
        ("train my.yaml --fresh=yes", "--fresh = 'yes'\n  takes no value\n  fix: write --fresh alone\n"),
        ("train my.yaml --cfg jb", "--cfg = 'jb'\n  there is no such choice\n  fix: did you mean job?\n"),
        ("train my.yaml --max-restarts -1", "--max-restarts = '-1'\n  is not a whole number\n  fix: write 0 or more\n"),
        ("train my.yaml --learning_rate 3", "is not an option of trireme train\n  fix: write optimizer.lr=3\n"),
        ("train", "RECIPE\n  is missing\n  fix: name a .yaml file, or one of: trireme recipes\n"),
        ("export", "2 problems:\n1. CHECKPOINT\n     is missing\n     fix: give it, as in: trireme export "),
        ("cancel 3 --wait long", "--wait = 'long'\n  is not a time in seconds\n  fix: write 0 or more, such as 600\n"),
        ("completion bsh", "shell = 'bsh'\n  there is no such choice\n  fix: did you mean bash?\n"),
        ("models a b", "a\n"),
        ("logs run --lines x", "--lines = 'x'\n  is not a whole number\n  fix: write 0 or more\n"),
        ("logs run other", "other\n  is one argument more than trireme logs takes\n  fix: see: trireme logs --help\n"),
        ("trian", "COMMAND = 'trian'\n  there is no such command\n  fix: did you mean train?\n"),
    ],
)
def test_wrong_arguments_are_problems_with_a_fix(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    message = capsys.readouterr().err
    assert told in message and "usage:" not in message and "Traceback" not in message, message


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            "train R --config-dir my run.dir=a seed=1",
            "--config-dir = 'my'\n  is a flag .*\n  fix: write --recipe-dir DIR\n",
        ),
        ("train R -cd my seed=1", "-cd\n  is a flag .*\n  fix: write --recipe-dir DIR\n"),
        ("check R --config-name=x", "--config-name = 'x'\n  .*\n  fix: name the recipe first: trireme check NAME\n"),
        ("plans R --config-path=x", "fix: name the file of the recipe: trireme plans DIR/NAME.yaml\n"),
        (
            "train R --run seed=1",
            "--run\n  is a flag of Hydra's programs\n  fix: leave it out: trireme train RECIPE runs it",
        ),
        ("train R --experimental-rerun a.pickle", "fix: run the recipe that a run has kept: trireme train RUN/recipe"),
        ("train R --hydra-help seed=1", "--hydra-help\n  .*\n  fix: see: trireme train --help; keys: trireme keys\n"),
        ("train R -sc install=bash", "-sc\n  .*\n  fix: see: trireme completion --help\n"),
        ("train R --version", "fix: write: trireme --version\n"),
        ("train R --info seed=1", "--info = 'seed=1'\n  takes the next word for its value\n  fix: write --info=all\n"),
        ("train R --resolve", "--resolve\n  is about the recipe that --cfg prints\n  fix: add --cfg job\n"),
        ("train R -p optimizer", "--package = 'optimizer'\n  .*\n  fix: add --cfg job\n"),
        ("train R -c job -i config", "--info = 'config'\n  prints something else than --cfg\n"),
        ("train R -c job -m seed=1,2", "--multirun\n  starts runs, and --cfg prints one recipe\n  fix: leave -m out"),
        ("launch R -i -m seed=1,2", "--multirun\n  starts runs, and --info prints one recipe\n"),
        ("evaluate R --cfg job", "--cfg = 'job'\n  is an option of trireme train, not of trireme evaluate\n"),
    ],
)
def test_flags_of_hydra_work_or_name_what_does(words: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(TINY) if word == "R" else word for word in words.split()]) == 2
    message = capsys.readouterr().err
    assert re.match(told if not told.startswith("fix") else rf".*\n.*\n  {told}", message), message
    assert message.count("fix:") == 1


def test_short_flags_of_hydra_print_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(TINY), "-c", "job", "-p", "optimizer", "optimizer.lr=0.25"]) == 0
    assert "lr: 0.25\n" in capsys.readouterr().out
    assert main(["train", str(TINY), "optimizer.lr=0.25", "-i"]) == 0
    assert "Config search path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("checkpoint", "out", "told"),
    [
        ("full", "file", "OUT = "),
        ("full", "full", "OUT = "),
        ("full", "file/below", "OUT = "),
        ("none", "new", "CHECKPOINT = "),
        ("none", "full", "2 problems:\n1. CHECKPOINT = "),
    ],
)
def test_export_refuses_folders_before_imports_that_take_seconds(
    checkpoint: str, out: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "file", tmp_path / "full" / "file"):
        file.write_text("mine")
    arguments = ["export", str(tmp_path / checkpoint), str(tmp_path / out)]
    program = (
        f"import sys; from trireme.launch.cli import main; code = main({arguments!r}); "
        "print(code, {'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
    assert result.stdout == "2 set()\n" and result.stderr.startswith(told), result.stdout + result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_an_override_that_a_later_one_replaces_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["seed=1", "plan=ddp", "optimizer.lr=1e-3", "seed=2", "plan=single", "optimizer.lr=1e-3"]
    assert main(["check", str(TINY), ROOTS, *given]) == 0
    printed = capsys.readouterr()
    notes = [
        "seed=1 has no effect, since seed=2 comes after it",
        "plan=ddp has no effect, since plan=single comes after it",
    ]
    assert printed.err == "".join(f"note: {note}\n" for note in notes)
    assert "plan   single" in printed.out


def test_mappings_of_one_key_are_merged() -> None:
    given = ["model.config={a: 1}", "~callbacks.mine", "model.config={b: 2}", "callbacks.mine={_target_: a.b}"]
    assert last_of_each(given) == (given, [])


@pytest.mark.parametrize(
    ("first", "second"), [("~optimizer", "optimizer=lion"), ("seed=1", "~seed"), ("~ema", "ema=null")]
)
def test_a_key_is_either_set_or_left_out(first: str, second: str) -> None:
    assert last_of_each([first, second]) == ([second], [f"{first} has no effect, since {second} comes after it"])


def test_a_run_folder_stands_for_its_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trireme.launch.find_recipes import find_recipe

    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("defaults: [/base]\n")
    assert find_recipe(str(run)) == run / "recipe.yaml"
    assert find_recipe(f"{run}/") == run / "recipe.yaml"


def test_a_component_that_is_only_set_is_told_how_to_add_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["callbacks.sample.prompts=[a]", "callbacks.other.x=1", "data.eval_source.paths=[a.jsonl]"]
    assert main(["check", str(TINY), *given]) == 2
    message = capsys.readouterr().err
    assert "fix: add it: callbacks=sample\n" in message
    assert "fix: write data.eval_source._target_=trireme.trainer.data.sources.PythonSources\n" in message
    assert "fix: write _target_: package.module.Name\n" in message  # nothing of the name `other` is known


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (["callbacks.wandb.mode=offline"], "add it: tracker=wandb"),
        (["callbacks.trackers.project=sea"], "add it: tracker=all"),
        (["tracker=tensorboard", "callbacks.mlflow.project=sea"], "add it: tracker=[tensorboard,mlflow]"),
    ],
)
def test_an_option_of_a_tracker_that_was_not_chosen_says_how_to_choose_it(
    given: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    assert main(["check", str(TINY), *given]) == 2
    assert f"fix: {fix}\n" in capsys.readouterr().err


def test_bitsandbytes_does_not_speak_of_kernels_that_nobody_uses(caplog: pytest.LogCaptureFixture) -> None:
    """transformers imports it for models that are not quantised, too."""
    from trireme.launch.start_process import prepare_process

    prepare_process()
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load CPU gemm_4bit_forward")
    assert not caplog.messages
