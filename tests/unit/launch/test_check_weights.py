"""Tests of ``trireme check`` on pretrained weights and their tokenizer. It accepts those with which a run can train,
and otherwise names the recipe key at fault.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import trireme_here
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trireme.models.model_config import ModelConfig, hf_config

SMALL = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small Llama with 300 embeddings and a tokenizer of 290 tokens; a corpus is in the folder above."""
    folder = tmp_path / "base"
    config = hf_config(ModelConfig("llama", {**SMALL, "num_hidden_layers": 2, "max_position_embeddings": 64}))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    _save_tokenizer(folder, 290)
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": f"w{n} w{n + 1}"}) for n in range(50)))
    return folder


def _save_tokenizer(folder: Path, tokens: int) -> None:
    words = {f"w{number}": number for number in range(tokens - 2)} | {"<eos>": tokens - 2, "[UNK]": tokens - 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run ``trireme check finetune/text``; returns the exit code and what was printed."""

    def run(*overrides: str) -> tuple[int, str]:
        corpus = f"data.source.paths=[{tmp_path}/corpus.jsonl]"
        capsys.readouterr()  # drop what saving the base has printed
        done = trireme_here(capsys, "check", "finetune/text", corpus, "data.block_size=32", *overrides)
        return done.returncode, done.stdout + done.stderr

    return run


def test_weights_alone_are_enough(check, base: Path) -> None:
    code, said = check(f"model.weights={base}")
    assert code == 0, said
    assert f"model  llama, weights of {base}" in said and "note" not in said
    _, said = check(f"model.weights={base}", "model.config.num_hidden_layers=1")
    assert "note   9 tensors" in said and "blocks beyond the model's 1" in said


def test_weights_that_were_forgotten_are_required(check) -> None:
    code, said = check("model.family=llama")
    assert code == 2 and "model.weights\n     is required and has no value" in said


def test_a_vocabulary_that_agrees_with_the_weights_is_accepted(check, base: Path) -> None:
    code, said = check(f"model.weights={base}", "model.config.vocab_size=300")
    assert code == 0, said


def test_a_tokenizer_larger_than_the_embedding(check, base: Path, tmp_path: Path) -> None:
    _save_tokenizer(tmp_path / "larger", 310)
    code, said = check(f"model.weights={base}", f"data.tokenizer.path={tmp_path / 'larger'}")
    assert code == 2 and "smaller than the tokenizer's 310 tokens" in said
    told = said.partition("or set ")[2].split()[0]  # what the message tells to do
    assert told == "model.resize_embeddings=true"
    code, said = check(f"model.weights={base}", f"data.tokenizer.path={tmp_path / 'larger'}", told)
    assert code == 0, said


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.weights=w/nothing"], ["model.weights = 'w/nothing'", "there is no folder of this name here"]),
        (["model.weights={base}/../runs/one"], ["has no config.json", "trireme export"]),
        (["model.weights='{long}'"], ["model.weights", "no folder or file of this name"]),
        (["model.weights={base}", "model.config.hidden_act=sillu"], ["model.config.hidden_act", "did you mean silu"]),
        (["model.weights={base}", "model.revision=main"], ["model.revision = 'main'", "has no effect"]),
        (["model.weights={base}", "model.family=gpt2"], ["model.family = 'gpt2'", "model.family=llama"]),
        (["model.weights={base}", "model.family=qwen3"], ["model.family = 'qwen3'", "is not supported"]),
        (["model.weights={base}", "data.tokenizer.path=gpt2"], ["data.tokenizer.path = 'gpt2'", "no folder"]),
        (["model.weights={base}", "model.config.num_key_value_heads=3"], ["num_key_value_heads", "does not divide"]),
        (["model.weights={base}", "model.config.hidden_size=64"], ["model.config", "has shape"]),
        (["model.weights={base}", "model.attention=flash_attention_2"], ["model.attention", "pip install flash-attn"]),
    ],
)
def test_what_a_run_would_refuse(check, base: Path, overrides: list[str], words: list[str]) -> None:
    (base.parent / "runs" / "one" / "checkpoints").mkdir(parents=True)
    code, said = check(*[text.format(base=base, long="x" * 5000) for text in overrides])
    assert code == 2, said
    for word in (*words, "fix:"):
        assert word in said
    assert said.count("fix:") == 1, said


def test_what_is_known_of_a_family_in_fp16_is_noted(check, capsys: pytest.CaptureFixture[str]) -> None:
    done = trireme_here(capsys, "check", "pretrain/persimmon_stdlib", "plan.precision=fp16")
    assert done.returncode == 0 and "gives NaN when it is fine-tuned in fp16" in done.stdout
