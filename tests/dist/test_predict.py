"""Predictions and generated texts under several plans equal those of a single process, in the order of the data set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.command import trireme_here
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines
from helpers.recipes import tiny_recipe
from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose
from trireme.trainer.build import train
from trireme.trainer.predict_only import predict

THINGS = {"cat": "chat", "dog": "chien", "boat": "bateau", "tree": "arbre", "key": "clef", "king": "roi"}
COLOURS = {"red": "rouge", "green": "vert", "black": "noir", "white": "blanc", "yellow": "jaune"}
RECIPE = """# Translates pairs of words.
# trireme train translate.yaml
defaults: [/base, /model: t5_tiny, /data: rows, override /task: seq2seq_lm, _self_]
model: {config: {vocab_size: 300}}
data:
  source: {paths: [PAIRS]}
  eval_sets:
    again: {_target_: trireme.trainer.data.row_files.RowFiles, paths: [PAIRS]}
  columns: {source: en, target: fr}
  samples: {prefix: "to French: "}
  held_out: 0.3
  block_size: 24
  tokenizer: {kind: unigram, vocab_size: 200}
trainer: {global_batch_size: 8, micro_batch_size: 2, max_steps: 60, log_every: 20, eval_samples: 13}
optimizer: {lr: 1e-2}
scheduler: {warmup_steps: 5}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translate")
    rows = [
        {"en": f"the {colour} {thing} of {other}", "fr": f"{THINGS[thing]} {COLOURS[colour]} de {THINGS[other]}"}
        for thing in THINGS
        for colour in COLOURS
        for other in list(THINGS)[:2]
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "translate.yaml").write_text(RECIPE.replace("PAIRS", str(folder / "pairs.jsonl")))
    return folder


def _recipe(folder: Path, run: str, *overrides: str) -> Any:
    composed = compose(str(folder / "translate.yaml"), [f"run.dir={folder / run}", *overrides])
    recipe, problems = read_recipe(composed.raw, lambda plan: int(os.environ.get("WORLD_SIZE", "1")))
    assert recipe is not None, [*composed.problems, *problems]
    return recipe


def _train(folder: Path, run: str, plan: str, *options: str) -> None:
    train(_recipe(folder, run, f"plan={plan}", *options))


def _predict(
    folder: Path, run: str, plan: str, out: str, options: str, on: str = "held_out", limit: int | None = None
) -> dict[str, Any]:
    result = predict(_recipe(folder, run, f"plan={plan}", options), str(folder / out), on=on, limit=limit)
    return {name: value for name, value in result.items() if name != "weights"}


GREEDY = "generation={max_new_tokens: 6, scores: [exact_match, bleu]}"
DRAWN = "generation={max_new_tokens: 6, do_sample: true, temperature: 1.5, top_k: 20, scores: [exact_match, bleu]}"
FEW = (
    GREEDY,
    "trainer.max_steps=5",
    "trainer.log_every=1",
    "optimizer.lr=1e-3",
    "trainer.eval_samples=3",
)
BEAMS = "generation={max_new_tokens: 6, num_beams: 3, scores: [exact_match, bleu]}"


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    _train(folder, "single", "single", GREEDY)
    return _predict(folder, "single", "single", "single.jsonl", GREEDY)


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_texts_are_written_and_scored(folder: Path, one: dict[str, Any]) -> None:
    rows = _rows(folder / "single.jsonl")
    assert [row["index"] for row in rows] == list(range(len(rows))) and len(rows) >= 13
    assert all(row["source"].startswith("the ") and row["target"] == row["wanted"] for row in rows)
    exact = sum(row["prediction"] == row["wanted"] for row in rows) / len(rows)
    assert one["eval_exact_match"] == pytest.approx(exact)
    assert len({len(row["prediction"]) for row in rows}) > 1, "the model has learnt nothing, so nothing is tested"
    from sacrebleu.metrics.bleu import BLEU

    by_the_library = BLEU().corpus_score([row["prediction"] for row in rows], [[row["wanted"] for row in rows]])
    assert one["eval_bleu"] == pytest.approx(by_the_library.score)
    line = [line for line in lines(folder / "single") if "eval_loss" in line][-1]
    assert {"eval_again_loss", "eval_again_bleu", "eval_bleu"} <= set(line)


PLANS = ["ddp", "zero3", "fsdp_full_shard"]


@pytest.mark.parametrize("plan", PLANS)
def test_texts_and_records_of_one_process(folder: Path, one: dict[str, Any], plan: str) -> None:
    alone = _predict(folder, "single", "single", "first.jsonl", GREEDY, limit=7)
    results = kept_ranks(_predict, 2, folder, "single", plan, f"{plan}.jsonl", GREEDY, "held_out", 7)
    assert results[0] == results[1] == pytest.approx(alone, rel=1e-4)
    assert _rows(folder / f"{plan}.jsonl") == _rows(folder / "first.jsonl") == _rows(folder / "single.jsonl")[:7]


@pytest.fixture(scope="module")
def few_steps(folder: Path) -> list[dict[str, Any]]:
    _train(folder, "few", "single", *FEW)
    return lines(folder / "few")


@pytest.mark.parametrize("plan", PLANS)
def test_losses_and_scores_of_one_process(folder: Path, few_steps: list[dict[str, Any]], plan: str) -> None:
    kept_ranks(_train, 2, folder, plan, plan, *FEW, timeout=240)
    names = ("step", "loss", "grad_norm", "eval_loss", "eval_bleu", "eval_again_loss", "eval_again_exact_match")
    for ours, alone in zip(lines(folder / plan), few_steps, strict=True):
        assert {name: ours[name] for name in names if name in ours} == pytest.approx(
            {name: alone[name] for name in names if name in alone}, rel=1e-4
        )


@pytest.mark.parametrize(("plan", "options"), [("fsdp_full_shard", DRAWN), ("zero3", BEAMS)])
def test_sampling_and_beam_search_under_a_plan(folder: Path, one: dict[str, Any], plan: str, options: str) -> None:
    _predict(folder, "single", "single", "alone.jsonl", options, "again", 5)
    kept_ranks(_predict, 2, folder, "single", plan, "together.jsonl", options, "again", 5)
    alone = _rows(folder / "alone.jsonl")
    assert len(alone) == 5 and _rows(folder / "together.jsonl") == alone
    assert alone != _rows(folder / "single.jsonl")[:5]


def _tokens(folder: Path, plan: str) -> None:
    recipe = tiny_recipe(folder, "model=gpt2_tiny", "trainer.micro_batch_size=2", "trainer.max_steps=2", f"plan={plan}")
    predict(recipe, str(folder / f"{plan}.parquet"), limit=17)


def test_tokens_under_tensor_and_pipeline_plans(tmp_path: Path) -> None:
    from pyarrow import parquet

    train(tiny_recipe(tmp_path, "model=gpt2_tiny", "trainer.micro_batch_size=2", "trainer.max_steps=2"))
    _tokens(tmp_path, "single")
    wanted = parquet.read_table(tmp_path / "single.parquet").to_pylist()
    assert len(wanted) == 17 and set(wanted[0]) == {"index", "text", "prediction"}
    for plan in ("tp", "pp_1f1b"):
        kept_ranks(_tokens, 2, tmp_path, plan)
        assert parquet.read_table(tmp_path / f"{plan}.parquet").to_pylist() == wanted


def test_wrong_options_are_refused(folder: Path, one: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(folder / "translate.yaml")
    for arguments, said in (
        (["predict", recipe, "--out", "out.txt"], "--out"),
        (["predict", recipe, f"run.dir={folder / 'single'}", "--on", "test"], "--on"),
        (["train", recipe, "generation={scores: [bluex]}"], "generation.scores"),
        (["train", recipe, "generation={num_beams: 0}"], "generation.num_beams"),
        (["train", recipe, "data.samples.prefixx=no"], "data.samples.prefixx"),
    ):
        result = trireme_here(capsys, *arguments)
        assert result.returncode == 2 and said in result.stderr, result.stderr


def test_the_command_generate_reads_a_source(
    folder: Path, one: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    row = _rows(folder / "single.jsonl")[0]
    options = ["--temperature", "0", "--max-new-tokens", "6"]
    result = trireme_here(
        capsys, "generate", str(folder / "single"), "--prompt", f"to French: {row['source']}", *options
    )
    assert result.returncode == 0 and result.stdout.strip() == row["prediction"], result.stderr
