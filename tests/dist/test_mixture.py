"""Training on a mixture of data sources gives the same loss per source under several plans, and resumes exactly; wrong
or changed sources are reported.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training, worst_difference
from helpers.recipes import STDLIB, TINY, recipe_of
from trireme.launch.cli import main
from trireme.trainer.build import train
from trireme.trainer.evaluate_only import evaluate
from trireme.trainer.predict_only import predict

TOLERANCE = 1e-4
PYTHON = "trireme.trainer.data.sources.PythonSources"
FILES = "trireme.trainer.data.sources.Files"


def _sources(target: str, arguments: str) -> str:
    parts = (
        f"{name}:{{source:{{_target_:{target},{arguments.format(STDLIB / name)}}},weight:{weight}}}"
        for name, weight in (("email", 3), ("json", 1))
    )
    return f"data.sources={{{','.join(parts)}}}"


SHORT = ["trainer.max_steps=6", "trainer.eval_every=3", "checkpoint.at_end=true"]
MIXED = [_sources(PYTHON, "roots:[{}]"), *SHORT]
STREAMED = [
    _sources(FILES, "paths:[{}/*.py],format:txt"),
    *SHORT,
    "data.streaming=true",
    "data.deduplicate=false",
    "data.shuffle_window=16",
    "data.tokenizer.sample_documents=20",
]
BY_SOURCE = ("loss", "loss/email", "loss/json", "grad_norm")


def _train(run_dir: Path, overrides: list[str]) -> None:
    train(recipe_of(TINY, run_dir, *overrides))


@pytest.fixture(scope="module", params=[MIXED, STREAMED], ids=["prepared", "streamed"])
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    run_dir = tmp_path_factory.mktemp("one") / "run"
    _train(run_dir, request.param)
    return run_dir, request.param


def test_the_losses_of_the_sources_make_up_the_loss(one: tuple[Path, list[str]]) -> None:
    run_dir, overrides = one
    trained = training(run_dir)
    assert len(trained) == 6
    for line in trained:  # packed samples have equally many labels, so losses are weighted by numbers of samples
        assert line["loss"] == pytest.approx(0.75 * line["loss/email"] + 0.25 * line["loss/json"], rel=1e-5)
    evaluated = [line for line in lines(run_dir) if "eval_loss" in line]
    assert len(evaluated) == 2
    for line in evaluated:
        parts = line["eval_loss/email"], line["eval_loss/json"]
        assert line["eval_loss"] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1], rel=1e-6)
        assert {"eval_accuracy/email", "eval_perplexity/json"} <= line.keys()
    assert "source json: 25.00% of the samples, 12 in this run" in (run_dir / "log.txt").read_text()
    again = evaluate(recipe_of(TINY, run_dir, *overrides))
    assert {name: again[name] for name in again if name.startswith("eval_")} == pytest.approx(
        {name: value for name, value in evaluated[-1].items() if name.startswith("eval_")}
    )


@pytest.mark.parametrize("plan", ["ddp", "zero2", "fsdp_full_shard", "tp", "pp_1f1b"])
def test_a_plan_gives_the_trajectory_of_one_process(tmp_path: Path, one: tuple[Path, list[str]], plan: str) -> None:
    run_dir, overrides = one
    if overrides is STREAMED and plan not in ("ddp", "zero2"):
        pytest.skip("other plans read the stream as these do")
    kept_ranks(_train, 2, tmp_path, [*overrides, f"plan={plan}"])
    alone, spread = training(run_dir), training(tmp_path)
    assert worst_difference(alone, spread, BY_SOURCE) < TOLERANCE
    evaluated = [[line for line in lines(run) if "eval_loss" in line] for run in (run_dir, tmp_path)]
    for there, here in zip(*evaluated, strict=True):
        assert here == pytest.approx(there, rel=TOLERANCE)


def test_a_resume_is_exact_and_on_another_plan_the_same(tmp_path: Path, one: tuple[Path, list[str]]) -> None:
    run_dir, overrides = one
    for name, plan in (("same", "single"), ("other", "fsdp_full_shard")):
        _train(tmp_path / name, [*overrides, "trainer.stop_at=4"])
        kept_ranks(_train, 1 if name == "same" else 2, tmp_path / name, [*overrides, f"plan={plan}"])
    assert lines(tmp_path / "same") == lines(run_dir)
    assert worst_difference(training(run_dir), training(tmp_path / "other"), BY_SOURCE) < TOLERANCE


def test_lines_between_and_losses_of_absent_sources(tmp_path: Path) -> None:
    """Steps that are not logged compute no losses by source; a source without a sample in the batch has none."""
    _train(tmp_path, [*MIXED, "trainer.log_every=4", "trainer.global_batch_size=2", "trainer.micro_batch_size=1"])
    found = {line["step"]: {key for key in line if key.startswith("loss/")} for line in training(tmp_path)}
    assert found == {1: {"loss/email"}, 4: {"loss/email", "loss/json"}, 6: {"loss/email", "loss/json"}}


def test_predictions_name_their_source(tmp_path: Path, one: tuple[Path, list[str]]) -> None:
    run_dir, overrides = one
    recipe = recipe_of(TINY, run_dir, *overrides)
    metrics = predict(recipe, str(tmp_path / "out.jsonl"), limit=8)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["data_source"] for row in rows] == ["email"] * 6 + ["json"] * 2
    assert [row["index"] for row in rows] == sorted({row["index"] for row in rows})
    assert {"eval_loss", "eval_loss/email", "eval_loss/json"} <= metrics.keys()


def test_changed_sources_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*overrides: str) -> tuple[int, str]:
        code = main(["train", str(TINY), *MIXED, f"run.dir={tmp_path}", "trainer.eval_every=null", *overrides])
        said = capfd.readouterr()
        return code, (said.out + said.err).replace("\n", " ")

    assert run("trainer.stop_at=2")[0] == 0
    code, said = run("data.sources.json.weight=2")
    assert code == 2 and "data.sources.json.weight" in said, said
    more = f"data.sources.html={{source:{{_target_:{PYTHON},roots:[{STDLIB / 'html'}]}},weight:1}}"
    code, said = run(more)
    assert code == 2 and "data.sources.html" in said, said
    (checkpoint,) = (tmp_path / "checkpoints").glob("step*")
    code, said = run("data.sources.json.weight=2", "trainer.stop_at=3", "--resume", str(checkpoint))
    assert code == 0, said
    for words in ("mixes other sources or weights", "email 0.75, json 0.25 then, email 0.6, json 0.4 now"):
        assert words in said, said


def _refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["check", str(TINY), *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_the_check_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), *MIXED]) == 0, capsys.readouterr().err
    assert "email 75 %, json 25 %" in capsys.readouterr().out
    for override, *said in (
        ("data.sources.json.weight=0", "data.sources.json.weight = 0"),
        ("data.sources.json.weight=-2", "data.sources.json.weight = -2"),
        ("data.sources.json.weight=heavy", "data.sources.json.weight"),
        ("data.sources.json.wieght=2", "data.sources.json.wieght", "did you mean data.sources.json.weight?"),
        ("data.sources.json.source.rots=2", "data.sources.json.source.rots", "did you mean"),
        ("data.sources.json.source.roots=[/nowhere]", "data.sources.json.source.roots", "no such folder"),
        ("data.sources.json=3", "data.sources.json", "expected a mapping"),
        ("data.sources.other={weight:1}", "data.sources.other.source", "is required"),
        (f"data.source={{_target_:{PYTHON}}}", "data.sources", "beside source"),
    ):
        message = _refused(capsys, *MIXED, override)
        assert all(words in message for words in said), message
    assert "names no source" in _refused(capsys, "data.sources={}")
    (tmp_path / "empty.txt").write_text("")
    files = f"{{source:{{_target_:trireme.trainer.data.sources.Files,paths:[{tmp_path}/empty.txt]}},weight:1}}"
    assert "data.sources.none.source" in _refused(capsys, *MIXED, f"data.sources.none={files}")
    rows = f"{{source:{{_target_:trireme.trainer.data.row_files.RowFiles,paths:[{tmp_path}/empty.txt]}},weight:1}}"
    message = _refused(capsys, *MIXED, f"data.sources.none={rows}")
    assert "rows of columns, and this task learns from documents" in message


ROWS = """# Tells two kinds of texts apart, from two sources.
# trireme train rows.yaml
defaults:
  [/base, /model: bert_tiny, /data: rows, override /task: sequence_classification, override /callbacks: minimal, _self_]
model: {config: {vocab_size: 300}}
data:
  sources:
    posts: {source: {_target_: trireme.trainer.data.row_files.RowFiles, paths: [FOLDER/posts.jsonl]}, weight: 2}
    reviews:
      source: {_target_: trireme.trainer.data.row_files.RowFiles, paths: [FOLDER/reviews.csv]}
      columns: {text: body, label: stars}
  held_out: 0.25
  block_size: 16
  tokenizer: {kind: wordpiece, vocab_size: 200}
trainer: {max_steps: 4, global_batch_size: 12, micro_batch_size: 3, eval_every: 2}
checkpoint: {every: 2, at_end: true}
seed: 3
"""


def _rows_recipe(folder: Path) -> Path:
    posts = [json.dumps({"text": f"a post of {n} words", "label": ["calm", "angry"][n % 2]}) for n in range(40)]
    reviews = [f"a review of {n} stars,{['angry', 'odd'][n % 2]}" for n in range(16)]
    (folder / "posts.jsonl").write_text("\n".join(posts))
    (folder / "reviews.csv").write_text("\n".join(["body,stars", *reviews]))
    (folder / "rows.yaml").write_text(ROWS.replace("FOLDER", str(folder)))
    return folder / "rows.yaml"


def _train_rows(recipe: Path, run: str, *overrides: str) -> None:
    train(recipe_of(recipe, recipe.parent / run, *overrides))


def test_rows_under_every_plan(tmp_path: Path) -> None:
    recipe = _rows_recipe(tmp_path)
    _train_rows(recipe, "one", "data.num_workers=1")
    alone, keys = training(tmp_path / "one"), ("loss", "loss/posts", "loss/reviews", "grad_norm")
    for line in alone:
        assert line["loss"] == pytest.approx((2 * line["loss/posts"] + line["loss/reviews"]) / 3, rel=1e-5)
    for plan in ("ddp", "zero3"):
        kept_ranks(_train_rows, 2, recipe, plan, f"plan={plan}", "trainer.stop_at=2")
        kept_ranks(_train_rows, 2, recipe, plan, f"plan={plan}")
        assert worst_difference(alone, training(tmp_path / plan), keys) < TOLERANCE
        evaluated = [[line for line in lines(tmp_path / run) if "eval_loss" in line] for run in ("one", plan)]
        for there, here in zip(*evaluated, strict=True):
            assert {"eval_loss/posts", "eval_accuracy/reviews", "eval_f1"} <= here.keys()
            assert here == pytest.approx(there, rel=TOLERANCE)


def test_columns_of_rows_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _rows_recipe(tmp_path)
    assert main(["check", str(recipe)]) == 0, capsys.readouterr().err
    for override, *said in (
        ("data.sources.reviews.columns.label=starz", "data.sources.reviews.source", "no column starz", "body, stars"),
        ("data.sources.posts.columns={txt: text}", "data.sources.posts.columns.txt", "not a column that the task uses"),
        ("data.columns={txt: text}", "data.columns.txt", "not a column that the task uses"),
        ("data.columns.text=words", "data.sources.posts.source", "data.sources.posts.columns.text=COLUMN"),
    ):
        assert main(["check", str(recipe), override]) == 2
        message = capsys.readouterr().err
        assert all(words in message for words in said), message
