"""Tests of fine-tuning on chats: losses under several parallelism plans, and exported models that answer prompts and
are trained further.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.recipes import TINY, recipe_of
from transformers import AutoModelForCausalLM, AutoTokenizer
from trireme.launch.cli import main
from trireme.trainer.build import train
from trireme.trainer.checkpoint.export.export_folder import export

TOLERANCE = 1e-4
CHATS = [
    "data=python_chat",
    "data.source.longest=30",
    "data.chat.unseen=allow",
    "data.tokenizer.vocab_size=512",
    "data.block_size=96",
    "trainer.max_steps=5",
    "checkpoint.at_end=true",
]


def _train(run_dir: Path, overrides: list[str]) -> None:
    train(recipe_of(TINY, run_dir, *overrides))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("chats") / "run"
    _train(run_dir, CHATS)
    return run_dir


@pytest.mark.parametrize("plan", ["ddp", "fsdp_full_shard", "pp_1f1b"])
def test_a_plan_gives_the_trajectory_of_one_process(tmp_path: Path, one: Path, plan: str) -> None:
    kept_ranks(_train, 2, tmp_path, [*CHATS, f"plan={plan}"])
    alone, spread = training(one), training(tmp_path)
    assert len(alone) == len(spread) == 5
    assert worst_difference(alone, spread, ("loss", "grad_norm")) < TOLERANCE


def test_an_export_has_the_template_and_answers(one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(str(one), str(tmp_path / "out"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    assert asked == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>" and len(tokenizer(asked, add_special_tokens=False)["input_ids"]) < 20
    options = ["--chat", "--prompt", "Where is copy from?", "--temperature", "0", "--max-new-tokens", "5"]
    assert main(["generate", str(folder), *options]) == 0
    assert "im_start" not in capsys.readouterr().out
    assert '--chat --prompt "..."' in (one / "log.txt").read_text()


def test_a_chat_model_is_trained_further_in_its_own_template(one: Path, tmp_path: Path) -> None:
    folder = export(str(one), str(tmp_path / "out"))
    rows = [{"prompt": f"Say {number}.", "completion": f"{number}!"} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["data=chat", f"data.source.paths=[{tmp_path}/rows.jsonl]", "data.block_size=64", "data.packing=bins"]
    model = ["model.family=null", f"model.weights={folder}", "model.config={}"]
    _train(tmp_path / "run", [*data, *model, "data.chat.loss=completions", "trainer.max_steps=2"])
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "ChatML is taken" not in log and len(training(tmp_path / "run")) == 2


def test_an_export_stops_at_the_end_of_a_turn(one: Path, tmp_path: Path) -> None:
    """The base's tokenizer ends texts with another token than its template ends turns with, as published bases do."""
    base = export(str(one), str(tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    text = tokenizer.eos_token_id
    assert text != turn and text in range(512)
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text()) | {"eos_token_id": text}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").unlink(missing_ok=True)
    model = ["model.family=null", f"model.weights={base}", "model.config={}", "data.tokenizer.path=null"]
    _train(tmp_path / "run", [*CHATS, *model, "trainer.max_steps=1"])
    model = AutoModelForCausalLM.from_pretrained(export(str(tmp_path / "run"), str(tmp_path / "out")))
    assert model.generation_config.eos_token_id == [text, turn]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token_id == text
