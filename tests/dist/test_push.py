"""Tests of pushing models to the Hugging Face Hub: the real client talks to a small local server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.command import tiny_command
from helpers.hub import Hub, hub
from trireme.trainer.callbacks.push import Push
from trireme.trainer.checkpoint.export.export_folder import export
from trireme.trainer.checkpoint.layout import verify

NOTES = """
from trireme.trainer.callbacks.callback import Callback


class Noted(Callback):
    def on_push_begin(self, trainer, state, control):
        with (trainer.run_dir / "pushes").open("a") as file:
            file.write(f"{state.step} ")
"""


def _train(server: Hub, run_dir: Path, *overrides: str, more: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": "hf_of_a_test", "HF_HOME": str(run_dir.parent / "hf")}
    environment["PYTHONPATH"] = os.pathsep.join([str(run_dir.parent), os.environ.get("PYTHONPATH", "")])
    (run_dir.parent / "noting_pushes.py").write_text(NOTES)
    short = ["trainer.eval_at_end=false", "trainer.max_steps=4", "checkpoint.every=2", "checkpoint.keep_last=1"]
    push = "+callbacks.push._target_=trireme.trainer.callbacks.push.Push"
    noted = "+callbacks.noted._target_=noting_pushes.Noted"
    pushes = (f"+callbacks.push.{override}" for override in overrides)
    command = tiny_command(run_dir, *short, push, noted, *pushes, *more)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def _model(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _top(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "/" not in name and not name.startswith(".")}


@pytest.mark.slow
def test_all_checkpoints(tmp_path: Path) -> None:
    """The hub has every checkpoint, although the run folder keeps one; the model is that of the last checkpoint."""
    with hub() as server:
        done = _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=all_checkpoints", "private=true")
        assert done.returncode == 0, done.stderr
        files = server.files["me/tiny"]
    assert server.private["me/tiny"] == "private" and server.tokens == {"Bearer hf_of_a_test"}
    assert _top(files) == _model(export(str(tmp_path / "run"), str(tmp_path / "offline")))
    for step in (2, 4):
        folder = tmp_path / "pulled" / f"step_{step:08d}"
        for name, content in files.items():
            if name.startswith(f"checkpoints/{folder.name}/"):
                (folder / name.split("/", 2)[2]).parent.mkdir(parents=True, exist_ok=True)
                (folder / name.split("/", 2)[2]).write_bytes(content)
        assert verify(folder) is None
    assert len((tmp_path / "run" / "pushes").read_text().split()) == 2
    assert [message for message, _ in server.commits] == [
        "Step 2",
        "Step 2, checkpoint",
        "Step 4",
        "Step 4, checkpoint",
    ]


def test_a_card_that_a_person_wrote_is_kept(tmp_path: Path) -> None:
    with hub() as server:
        server.files["me/tiny"] = {"README.md": b"# Mine"}
        done = _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=end")
        assert done.returncode == 0, done.stderr
        files = server.files["me/tiny"]
    assert files["README.md"] == b"# Mine" and "config.json" in files


def test_adapters_have_a_card(tmp_path: Path) -> None:
    with hub() as server:
        more = ("model=llama_tiny", "adapter=lora", "model.adapter.rank=2")
        done = _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=end", more=more)
        assert done.returncode == 0, done.stderr
        files = server.files["me/tiny"]
    assert "adapter_config.json" in files and "config.json" not in files
    assert b"library_name: peft" in files["README.md"] and b"on top of random weights" in files["README.md"]
    assert b"## Training" in files["README.md"] and b"adapter_model.safetensors" not in files["README.md"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("strategy", "folders"), [("end", set()), ("every_save", set()), ("checkpoint", {"last-checkpoint"})]
)
def test_other_strategies(tmp_path: Path, strategy: str, folders: set[str]) -> None:
    with hub() as server:
        done = _train(server, tmp_path / "run", "hub_id=me/tiny", f"strategy={strategy}")
        assert done.returncode == 0, done.stderr
        files = server.files["me/tiny"]
    assert {name.split("/")[0] for name in files if "/" in name} == folders
    assert _top(files) == _model(export(str(tmp_path / "run"), str(tmp_path / "offline")))
    messages = [message for message, _ in server.commits]
    assert messages[0 if strategy == "end" else -1].startswith("Step 4")
    if folders:  # the folder on the hub holds files of the newest checkpoint only
        newest = tmp_path / "run" / "checkpoints" / "step_00000004"
        held = {str(file.relative_to(newest)): file.read_bytes() for file in newest.rglob("*") if file.is_file()}
        assert {n.split("/", 1)[1]: c for n, c in files.items() if "/" in n} == held


@pytest.mark.long
def test_a_hub_that_fails_stops_nothing_but_one_that_refuses_does(tmp_path: Path) -> None:
    with hub() as server:
        refused = _train(server, tmp_path / "refused", "hub_id=others/tiny")
        assert refused.returncode == 2 and "You may not write there" in refused.stderr and "HF_TOKEN" in refused.stderr
        assert not (tmp_path / "refused" / "checkpoints").exists()
        server.closed = True
        done = _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=end")
        assert done.returncode == 0, done.stderr
        assert "step_00000004 was not pushed; training goes on" in (tmp_path / "run" / "log.txt").read_text()
        assert (tmp_path / "run" / "exported" / "model.safetensors").exists()
        server.closed = False
        assert _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=end").returncode == 0
        assert server.files["me/tiny"], "a finished run makes up for what was not pushed"
        pushed = len(server.commits)
        assert _train(server, tmp_path / "run", "hub_id=me/tiny", "strategy=end").returncode == 0
        assert len(server.commits) == pushed
    done = _train(server, tmp_path / "alone", "hub_id=me/tiny", "strategy=end")  # nobody listens any more
    assert done.returncode == 0, done.stderr
    assert "cannot be reached now" in (tmp_path / "alone" / "log.txt").read_text()


def test_every_save_is_pushed_if_asked() -> None:
    assert not Push("me/tiny").keeps_all
    assert Push("me/tiny", always=True).keeps_all and Push("me/tiny", "all_checkpoints").keeps_all


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="strategy='sometimes' is not known"):
        Push("me/tiny", strategy="sometimes")  # type: ignore[arg-type]
