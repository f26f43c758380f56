"""Tests of resuming a run whose training documents, or whose length in steps, have changed.

With other documents, the resume is refused unless ``--resume`` names the checkpoint; training then continues with the
tokenizer of the checkpoint. With another length the run resumes, and a note tells how the learning rate changes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helpers.recipes import TINY
from trireme.launch.cli import main
from trireme.trainer.data.tokenizer import load_tokenizer, tokens_like

Train = Callable[..., tuple[int, str]]


def write(path: Path, documents: int, word: str = "word") -> None:
    rows = ({"text": f"{word} {number} and its neighbours {number * 7} " * 12} for number in range(documents))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Train:
    """Train on ``corpus.jsonl``; returns the exit code and the output."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(
            ["train", str(TINY), "data=files", f"data.source.paths=[{tmp_path}/corpus.jsonl]", "data.block_size=32",
             "data.held_out=0.2", f"run.dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache",
             "trainer.eval_every=null", "scheduler=cosine", "trainer.eval_at_end=false", *arguments]
        )  # fmt: skip
        said = capfd.readouterr()
        return code, said.out + said.err

    return run


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step*"))


def test_added_documents_are_refused_or_named(train: Train, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    write(corpus, 30)
    assert train("trainer.max_steps=6", "trainer.stop_at=2")[0] == 0
    checkpoint = newest(tmp_path / "run")
    trained = load_tokenizer(str(checkpoint / "model"))

    os.utime(corpus, ns=(1, 1))  # another time stamp, as of a copy, is no change
    code, said = train("trainer.max_steps=6", "trainer.stop_at=3")
    assert code == 0 and "other documents" not in said, said

    write(corpus, 60, "Wort")
    code, said = train("trainer.max_steps=6", "trainer.stop_at=4")
    assert code == 2 and "Traceback" not in said
    for words in (
        "data.source",
        "other documents",
        "27 train documents",
        "--fresh",
        f"--resume {newest(tmp_path / 'run')}",
    ):
        assert words in said.replace("\n", " "), said

    code, said = train("trainer.max_steps=6", "trainer.stop_at=4", "--resume", str(newest(tmp_path / "run")))
    assert code == 0 and "other documents" in said and "going on with that of" in said, said
    assert tokens_like(load_tokenizer(str(newest(tmp_path / "run") / "model"))) == tokens_like(trained)
    code, said = train("trainer.max_steps=6")  # later resumes need no --resume
    assert code == 0 and "other documents" not in said, said
    assert newest(tmp_path / "run").name.endswith("6")


def test_a_checkpoint_without_fingerprints_resumes_with_a_note(train: Train, tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", 30)
    assert train("trainer.max_steps=4", "trainer.stop_at=2")[0] == 0
    checkpoint = newest(tmp_path / "run")
    state = next(file for file in checkpoint.iterdir() if file.suffix == ".json" and "made_of" in file.read_text())
    values = json.loads(state.read_text())
    del values["trainer"]["made_of"]
    state.write_text(json.dumps(values))
    (recipe,) = checkpoint.glob("recipe.yaml")
    older = yaml.safe_load(recipe.read_text())
    del older["data"]["source"]["delimiter"], older["data"]["append_eos"]  # as an older version wrote it
    recipe.write_text(yaml.safe_dump(older))
    from trireme.trainer.checkpoint.layout import MANIFEST

    manifest = json.loads((checkpoint / MANIFEST).read_text())
    for entry in (state, recipe):
        if isinstance(files := manifest.get("files"), dict):
            files.pop(entry.name, None)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    code, said = train("trainer.max_steps=4")
    assert code == 0 and "they are not compared" in said, said


def test_another_length_says_how_the_learning_rate_moves(train: Train, tmp_path: Path) -> None:
    write(tmp_path / "corpus.jsonl", 30)
    assert train("trainer.max_steps=4", "trainer.stop_at=2")[0] == 0
    code, said = train("trainer.max_steps=40", "trainer.stop_at=3")
    assert code == 0 and "the run has 40 steps instead of 4: at step 2 the learning rate moves from" in said, said
    code, said = train("trainer.max_steps=40", "trainer.stop_at=4")
    assert code == 0 and "learning rate moves" not in said, said
    code, said = train("trainer.max_steps=3")  # fewer than the run has
    assert code == 0 and "nothing is left to train" in said and "learning rate moves" not in said, said
