"""Wrong options of commands are refused, such as numbers out of range, options without effect, and texts that are not
UTF-8.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.command import refused, trireme_here
from helpers.recipes import TINY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trireme.errors import UserError
from trireme.launch import notes
from trireme.launch.commands.table import COMMANDS
from trireme.launch.recipe_arguments import count, positive, seconds
from trireme.trainer.checkpoint.export.expected_tensors import known_weights

SIZES = {"vocab_size": 32, "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of 16 positions: one with learnt positions, one with rotary positions."""
    root = tmp_path_factory.mktemp("models")
    words = {f"w{number}": number for number in range(32)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w2"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    learnt = GPT2Config(n_positions=16, n_embd=16, n_layer=1, n_head=2, **SIZES)
    rotary = LlamaConfig(
        max_position_embeddings=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        **SIZES,
    )
    found = {}
    for name, model in (("learnt", GPT2LMHeadModel(learnt)), ("rotary", LlamaForCausalLM(rotary))):
        found[name] = root / name
        model.save_pretrained(found[name])
        PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="w1").save_pretrained(found[name])
    return found


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--seed", value) for value in ("-1", "99999999999999999999", "nan")),
        *(("--temperature", value) for value in ("nan", "inf", "-inf", "-1", "1e-300")),
        *(("--top-k", value) for value in ("-1", "99999999999999999999", "1.5")),
        *(("--max-new-tokens", value) for value in ("0", "-3", "99999999999999999999")),
    ],
)
def test_numbers_of_generate(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = trireme_here(capsys, "generate", "none", "--prompt", "w3", f"{option}={value}")
    refused(made, option)
    assert "MODEL" not in made.stderr


def test_top_k_needs_something_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    made = trireme_here(capsys, "generate", "none", "--prompt", "w3", "--top-k", "3", "--temperature", "0")
    refused(made, "--top-k", "does not sample")


@pytest.mark.parametrize(("words", "new", "option"), [(17, 1, "--prompt"), (3, 15, "--max-new-tokens")])
def test_a_text_has_no_more_tokens_than_the_model_has_positions(
    words: int, new: int, option: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--prompt", "w3 " * words, "--max-new-tokens", str(new), "--temperature", "0"]
    refused(trireme_here(capsys, "generate", str(folders["learnt"]), *given), option, "16")
    notes._told.clear()
    made = trireme_here(capsys, "generate", str(folders["rotary"]), *given)
    assert made.returncode == 0 and "the model was made for 16" in made.stderr


def test_the_number_that_fits_is_told(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--prompt", "w3 w4 w5", "--temperature", "0", "--max-new-tokens"]
    refused(trireme_here(capsys, "generate", str(folders["learnt"]), *given, "15"), "write 14 or fewer")
    assert trireme_here(capsys, "generate", str(folders["learnt"]), *given, "14").returncode == 0
    assert trireme_here(capsys, "generate", str(folders["learnt"]), *given[:-1]).returncode == 0  # 14 as well


@pytest.mark.parametrize("given", [["--prompt"], ["--chat", "--prompt"], ["--chat", "--prompt", "w3", "--system"]])
def test_a_text_that_is_not_utf_8(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(trireme_here(capsys, "generate", "none", *given, "a\udcff"), given[-1], "not UTF-8")


def test_a_conversation_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "a\udcff"}]))
    refused(trireme_here(capsys, "generate", "none", "--chat", str(file)), "--chat", "messages.0.content")


@pytest.mark.parametrize(
    "given",
    [
        ("export", "a", "b", "--bits", "3"),
        ("export", "a", "b", "--by-activity"),
        ("export", "a", "b", "--rows", "3"),
        ("export", "a", "b", "--calibrate", "x"),
        ("export", "a", "b", "--group-size", "64"),
        ("export", "a", "b", "--quantize", "nf4", "--bits", "3"),
        ("search", "a", "--jobs", "3", "--best"),
        ("search", "a", "--here", "--table"),
        ("search", "a", "--fresh", "--table"),
        ("search", "a", "--best", "--table"),
        ("search", "a", "--nproc", "2", "--table"),
        ("search", str(TINY), "--here", "search=optuna", "search.space={optimizer.lr:{low:1e-5,high:1e-2}}"),
        ("plans", "--nproc", "2"),
        ("plans", "--recipe-dir", "a"),
        ("convert-args", "a", "--force"),
        ("generate", "a", "--seed", "3", "--prompt", "b", "--temperature", "0"),
        ("cancel", "a", "--wait", "3", "--now"),
        ("report", "a", "--every", "3"),
        ("generate", "a", "--prompt", "b", "--system", "c"),
    ],
    ids=" ".join,
)
def test_options_that_would_be_ignored(given: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    option = next(word for word in given if word.startswith("--") and word not in ("--quantize", "--prompt"))
    refused(trireme_here(capsys, *given), option, "fix:")


BAD = {
    count: ("nan", "inf", "-1", "1.5", "9" * 30),
    positive: ("nan", "inf", "-1", "0", "1.5", "9" * 30),
    seconds: ("nan", "inf", "-1", "x", "1e300"),
}


@pytest.mark.parametrize("kind", BAD, ids=lambda kind: kind.__name__)
def test_types_of_numbers(kind: Any) -> None:
    for text in BAD[kind]:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)
    assert kind("7") == 7


def test_no_option_takes_any_fraction() -> None:
    """Python's float takes nan and infinity; an option that has it checks them itself."""
    own_checks = {("generate", "--temperature")}
    for name, command in COMMANDS.items():
        for action in command.parser()._actions:
            if action.type is float:
                assert (name, action.option_strings[0]) in own_checks


def test_a_package_that_is_not_installed_is_named(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torchao" else known(name))
    monkeypatch.setitem(sys.modules, "torchao", None)
    (tmp_path / "t.txt").write_text("w3 w4\n" * 400)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "defaults: [/base, /model: pretrained, /data: files, override /qat: int4, _self_]\n"
        f"model: {{weights: {folders['rotary']}}}\ndata: {{source: {{paths: [{tmp_path}/t.txt]}}, block_size: 8}}\n"
    )
    refused(trireme_here(capsys, "check", str(recipe)), "model.qat.method", "needs the package torchao")


@pytest.mark.parametrize("by", ["override", "recipe"])
def test_a_refusal_is_json_where_the_log_is(by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", str(TINY), "trainer.max_steps=-3", "optimizer.lr=x", f"run.dir={tmp_path}/run"]
    if by == "recipe":
        given[1] = str(tmp_path / "r.yaml")
        Path(given[1]).write_text(TINY.read_text() + "\nrun: {log_format: json}\n")
    made = trireme_here(capsys, *given, *(["run.log_format=json"] if by == "override" else []))
    lines = [json.loads(line) for line in made.stderr.splitlines() if not line.startswith("note:")]
    assert made.returncode == 2 and {line["level"] for line in lines} == {"error"}
    found = {line["field"]: line for line in lines}
    assert found["trainer.max_steps"]["value"] == -3 and found["trainer.max_steps"]["fix"]
    refused(trireme_here(capsys, "train", str(TINY), "trainer.max_steps=-3"), "\n  fix:")


@pytest.mark.parametrize(("base", "field"), [("other", "--base"), (None, "CHECKPOINT")])
def test_another_base_of_adapters_is_named(base: str | None, field: str, folders: dict[str, Path]) -> None:
    source: Any = SimpleNamespace(fit=lambda model: None, shapes={})
    with pytest.raises(UserError, match=f"^{field}"):
        known_weights(source, folders["rotary"], base)
