"""``--fresh`` and ``trireme.train(fresh=True)`` check recipe, folders and files before they move the old run aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trireme
from helpers.command import ROOTS, refused, trireme_here
from helpers.recipes import TINY, tiny_recipe
from trireme.errors import UserError
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

LORA = ("model=pretrained", "adapter=continued")
MISTAKES = {
    "adapter": ([*LORA, "model.weights={base}", "model.adapter.path={gone}"], "model.adapter.path"),
    "bad_adapter": ([*LORA, "model.weights={base}", "model.adapter.path={bad}"], "model.adapter.path"),
    "weights": (["model=pretrained", "model.weights={gone}"], "model.weights"),
    "documents": (["data=files", "data.source.paths=[{gone}]"], "data.source.paths"),
    "template": (["data=chat", "data.source.paths=[{chats}]", "data.chat.template={gone}.jinja"], "data.chat.template"),
    "tokenizer": (["data.tokenizer.path={gone}"], "data.tokenizer.path"),
    "callback": (["+callbacks.own._target_=gone.Callback"], "callbacks.own"),
    "resume": (["--resume={gone}"], "--resume"),
    "empty": (["--resume={empty}"], "--resume"),
    "own": (["--resume={run}"], "--resume"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base model, a run that continued an adapter of it from a folder that is gone now, and files with mistakes."""
    root = tmp_path_factory.mktemp("fresh")
    train(tiny_recipe(root / "first", "model=llama_tiny", "trainer.max_steps=1"))
    base = export(str(root / "first"), str(root / "base"))
    beside = ("model=pretrained", f"model.weights={base}", "trainer.max_steps=1")
    train(tiny_recipe(root / "second", *beside, "adapter=lora"))
    folder = export(str(root / "second"), str(root / "gone"))
    train(tiny_recipe(root / "run", *beside, "adapter=continued", f"model.adapter.path={folder}"))
    bad = folder.rename(root / "bad")
    file = bad / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "peft_type": "IA3"}))
    (root / "empty").mkdir()
    talk = [{"role": "user", "content": "row?"}, {"role": "assistant", "content": "row!"}]
    (root / "chats.jsonl").write_text((json.dumps({"messages": talk}) + "\n") * 30)
    places = {name: root / name for name in ("base", "gone", "bad", "empty", "run")}
    return {**places, "chats": root / "chats.jsonl"}


@pytest.mark.parametrize("by", ["command", "function"])
@pytest.mark.parametrize("kind", MISTAKES)
def test_nothing_is_moved_before_all_is_checked(
    kind: str, by: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given, field = MISTAKES[kind]
    words = [word.format(**places) for word in (f"run.dir={places['run']}", "trainer.max_steps=1", *given)]
    words += [] if kind in ("documents", "template") else [ROOTS]
    if by == "command":
        refused(trireme_here(capsys, "train", str(TINY), *words, "--fresh"), field)
    else:
        resume = next((word.removeprefix("--resume=") for word in words if word.startswith("--")), "auto")
        overrides = [word for word in words if not word.startswith("--")]
        with pytest.raises(UserError, match=field):
            trireme.train(str(TINY), overrides, nproc=1, resume=resume, fresh=True)
    assert not places["run"].with_name("run.1").exists() and (places["run"] / "checkpoints").is_dir()
