"""``trireme check`` finds the mistakes in a recipe and its environment for which ``trireme train`` would refuse it, and
does not import torch. Only problems that depend on the size of the data are left to ``trireme train``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bad_recipes import BAD, GOOD, NEEDS_DATA
from helpers.command import ROOTS
from helpers.recipes import TINY
from trireme.launch.check_environment import environment_problems
from trireme.launch.cli import main


def _fields(message: str) -> set[str]:
    """Keys of the problems in a message; each stands at the beginning of a line."""
    heads = [line for line in message.splitlines() if line and not line[0].isspace() and not line.endswith("problems:")]
    return {head.lstrip("0123456789. ").split(" = ")[0] for head in heads if not head.startswith("note: ")}


def _refused(command: str, overrides: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    (folder / "file.txt").touch()
    filled = [override.replace("{tmp}", str(folder)) for override in overrides]
    own = any(override.startswith("run.dir=") for override in overrides)
    code = main([command, str(TINY), ROOTS, *([] if own else [f"run.dir={folder / 'run'}"]), *filled])
    message = capsys.readouterr().err
    assert code == 2 and "Traceback" not in message, message
    return _fields(message)


@pytest.mark.parametrize(("overrides", "fields"), BAD, ids=lambda value: ",".join(value)[:60])
def test_check_and_train_name_the_same_keys(
    overrides: list[str], fields: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _refused("check", overrides, tmp_path, capsys) == set(fields)
    assert _refused("train", overrides, tmp_path, capsys) == set(fields)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("overrides", "fields"), NEEDS_DATA, ids=lambda value: value[-1][:60])
def test_what_the_data_tells_is_refused_before_the_first_step(
    overrides: list[str], fields: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(fields) <= _refused("train", overrides, tmp_path, capsys)  # preparing the data may add problems
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("overrides", GOOD, ids=lambda value: ",".join(value)[:60])
def test_train_accepts_what_check_accepts(
    overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(TINY), ROOTS, f"run.dir={tmp_path / 'run'}", "trainer.max_steps=1", *overrides]
    assert main(["check", *arguments]) == 0, capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", *arguments]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"RANK": "first", "WORLD_SIZE": "2"}, ["RANK"]),
        ({"RANK": "2", "WORLD_SIZE": "2"}, ["RANK"]),
        ({"RANK": "-1", "WORLD_SIZE": "0"}, ["RANK", "WORLD_SIZE"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE"]),
        ({"MASTER_PORT": "99999"}, ["MASTER_PORT"]),
        ({"TRIREME_STARTED": "foo"}, ["TRIREME_STARTED"]),
        ({"TRIREME_STARTED": "nan"}, ["TRIREME_STARTED"]),
        ({"LOCAL_RANK": ""}, ["LOCAL_RANK"]),
        ({"OMP_NUM_THREADS": "many", "CUDA_VISIBLE_DEVICES": "first"}, ["OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"]),
        ({"TORCH_DISTRIBUTED_DEBUG": "maybe"}, ["TORCH_DISTRIBUTED_DEBUG"]),
        ({"TRIREME_CACHE": "/dev/null"}, ["TRIREME_CACHE"]),
    ],
    ids=lambda value: "-".join(value),
)
@pytest.mark.parametrize("command", ["check", "train"])
def test_nonsense_in_the_environment_is_one_message(
    command: str,
    variables: dict[str, str],
    named: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _refused(command, [], tmp_path, capsys) == set(named)


@pytest.mark.parametrize("value", ["1", "4,2"])
def test_usual_environments_are_accepted(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6, 0,MIG-1/2/0")
    assert main(["check", str(TINY), ROOTS, f"run.dir={tmp_path / 'run'}"]) == 0, capsys.readouterr().err


def test_a_check_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """Their imports would take most of a check's time; new configurations are checked in a process without torch."""
    program = (
        "import sys; from trireme.launch.cli import main; code = main(sys.argv[1:]); "
        "print(code, *{'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    )
    arguments = ["check", str(TINY), "callbacks=[default,early_stopping,best_model]", "trainer.eval_every=5"]
    environment = {**os.environ, "TRIREME_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program, *arguments, f"run.dir={tmp_path / 'run'}"]
    for more, code in (
        ([], "0"),
        ([], "0"),
        (["model.config.hidden_size=77"], "2"),
        (["model.config.hiden_size=8"], "2"),
    ):
        result = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=True)
        assert result.stdout.splitlines()[-1] == code, result.stdout + result.stderr
    assert "did you mean model.config.hidden_size?" in result.stderr


def test_a_port_that_is_no_number_is_told_what_a_port_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "xx")
    assert main(["check", str(TINY), f"run.dir={tmp_path}"]) == 2
    assert "use a port from 1024 to 65535" in capsys.readouterr().err


@pytest.mark.parametrize("started", ["1764362000", "1764362000.25"])
def test_the_start_that_launchers_set_is_accepted(started: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIREME_STARTED", started)
    assert not environment_problems()


@pytest.mark.parametrize("degree", ["replicate", "shard"])
def test_a_batch_that_does_not_fit_the_degrees_names_them(
    degree: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = [f"plan.{degree}=3", *(["plan.data_parallel=fsdp"] if degree == "shard" else [])]
    assert main(["check", str(TINY), f"run.dir={tmp_path}", *plan]) == 2
    assert f"or change plan.{degree}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "column"), [("sequence_classification", "label"), ("seq2seq_lm", "source"), ("dpo", "chosen")]
)
def test_documents_lack_the_columns_of_a_task(
    task: str, column: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(TINY), f"task={task}", f"run.dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert f"gives no column {column}" in said or "transformers does not have" in said
    assert "Traceback" not in said


def test_a_callback_with_a_wrong_type_is_judged_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["callbacks.early_stopping.metric=5", "callbacks.early_stopping.patience=-1"]
    assert main(["check", str(TINY), ROOTS, "callbacks=early_stopping", *given]) == 2
    message = capsys.readouterr().err
    assert "2 problems" in message
    assert "callbacks.early_stopping.metric" in message and "callbacks.early_stopping.patience" in message
