"""Options of transformers' ``fsdp_config`` can be written under ``plan.fsdp``, or read from a file that this key names.
``trireme convert-args`` converts them. Those that trireme lacks are refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command import ROOTS, refused, trireme_here
from helpers.recipes import TINY, recipe_of
from trireme.launch.convert.convert_arguments import converted
from trireme.launch.fsdp_options import fsdp_options

GIVEN = {
    "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "cpu_offload": True,
    "forward_prefetch": "true",
    "backward_prefetch": "BACKWARD_PRE",
    "activation_checkpointing": True,
    "use_orig_params": True,
    "state_dict_type": "FULL_STATE_DICT",
    "min_num_params": 0,
    "xla": False,
    "version": 2,
}
TAKEN = {
    "fsdp.transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
    "fsdp.offload": True,
    "fsdp.forward_prefetch": 1,
    "fsdp.backward_prefetch": "backward_pre",
    "recompute": "full",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_options_under_the_names_of_transformers() -> None:
    assert fsdp_options(GIVEN, "") == (TAKEN, [])
    one, other = (
        {"auto_wrap_policy": policy, "min_num_params": 1e8, "transformer_layer_cls_to_wrap": ["A"]}
        for policy in ("SIZE_BASED_WRAP", "TRANSFORMER_BASED_WRAP")
    )
    assert fsdp_options(one, "")[0] == {"fsdp.min_num_params": 100_000_000}
    assert fsdp_options(other, "")[0] == {"fsdp.transformer_layer_cls_to_wrap": ["A"]}
    for strategy, wanted in (("full_shard", True), ("SHARD_GRAD_OP", False), (2, False)):
        assert fsdp_options({"sharding_strategy": strategy}, "")[0] == {"fsdp.reshard_after_forward": wanted}


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("sharding_strategy", "HYBRID_SHARD", "plan=fsdp_hybrid_shard"),
        ("reshard_after_forward", "no_shard", "plan=fsdp_no_shard"),
        ("reshard_after_forward", "perhaps", "FULL_SHARD"),
        ("auto_wrap_policy", "NO_WRAP", "TRANSFORMER_BASED_WRAP"),
        ("ignored_modules", "head", "model.frozen"),
        ("xla", True, "remove it"),
        ("min_num_parms", 3, "min_num_params"),
        ("unheard_of", 3, "trireme keys plan.fsdp"),
    ],
)
def test_what_has_no_counterpart_is_refused(name: str, value: Any, fix: str) -> None:
    found, (problem,) = fsdp_options({f"fsdp_{name}": value}, "f.json: ")
    assert not found and problem.field == f"f.json: fsdp_{name}" and problem.value == value and fix in problem.fix


@pytest.mark.parametrize("name", ["f.json", "f.yaml"])
def test_a_file_is_read_into_the_recipe(name: str, tmp_path: Path) -> None:
    Path(name).write_text(json.dumps(GIVEN) if name.endswith("json") else yaml.safe_dump(GIVEN))
    plan = recipe_of(TINY, tmp_path / "run", ROOTS, "plan=fsdp_shard_grad_op", f"plan.fsdp={name}").plan
    assert plan.fsdp.offload and plan.fsdp.forward_prefetch == 1 and plan.recompute == "full"
    assert plan.fsdp.transformer_layer_cls_to_wrap == ["LlamaDecoderLayer"]
    assert not plan.fsdp.reshard_after_forward  # by the plan, since the file does not say it
    Path("mine.yaml").write_text(
        f"defaults: [/base, /model: llama_tiny, /data: python_stdlib, override /plan: fsdp_full_shard, _self_]\n"
        f"plan: {{fsdp: {name}}}\n"
    )
    more = ("trainer.max_steps=1", "data.tokenizer.vocab_size=512")
    full = recipe_of(Path("mine.yaml"), tmp_path / "run", ROOTS, *more).plan
    assert full.fsdp == replace(plan.fsdp, reshard_after_forward=True) and full.recompute == "full"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("cannot be read", "No such file")),
        ("{", ("is not JSON",)),
        ("[]", ("plan.fsdp", "is not a mapping")),
        ('{"offload": true, "offload": false}', ("offload", "is given twice")),
        ('{"cpu_offload": "perhaps", "xla": true}', ("f.json: cpu_offload", "f.json: xla")),
        ('{"min_num_params": -3}', ("plan.fsdp.min_num_params",)),
    ],
)
def test_files_that_are_refused(text: str | None, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        Path("f.json").write_text(text)
    refused(trireme_here(capsys, "check", str(TINY), ROOTS, "plan=fsdp_full_shard", "plan.fsdp=f.json"), *words)


@pytest.mark.parametrize(
    ("named", "further"),
    [("plan.fsdp=f.json", "plan.fsdp.offload=true"), ("plan.deepspeed=f.json", "plan.deepspeed.stage=2")],
)
def test_options_beside_a_file_are_refused(named: str, further: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In either order, and beside a file that the recipe names."""
    Path("f.json").write_text("{}")
    words = (further.partition("=")[0], f"cannot be set beside {named}", "write it into the file")
    for given in ((named, further), (further, named)):
        refused(trireme_here(capsys, "check", str(TINY), ROOTS, "plan=single", *given), *words)
    part = named.partition("=")[0].removeprefix("plan.")
    Path("mine.yaml").write_text(
        f"defaults: [/base, /model: llama_tiny, /data: python_stdlib, _self_]\nplan: {{{part}: f.json}}\n"
    )
    refused(trireme_here(capsys, "check", "mine.yaml", further), *words)


@pytest.mark.parametrize("as_file", [False, True])
def test_convert_args_converts_fsdp_options(as_file: bool, tmp_path: Path) -> None:
    options = {**GIVEN, "ignored_modules": "head"}
    Path("f.json").write_text(json.dumps(options))
    file = Path("arguments.yaml")
    file.write_text(
        yaml.safe_dump({"learning_rate": 1e-3, "fsdp": True, "fsdp_config": "f.json" if as_file else options})
    )
    draft, _ = converted(file, "transformers")
    assert {key: draft.values.get(f"plan.{key}") for key in TAKEN} == TAKEN
    assert draft.choices["plan"] == ["fsdp_full_shard"] and list(draft.left) == ["fsdp_config.ignored_modules"]


def test_convert_args_says_which_file_is_missing() -> None:
    Path("arguments.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-3, "fsdp_config": "no.json"}))
    draft, _ = converted(Path("arguments.yaml"), "transformers")
    assert draft.left["fsdp_config"][0] == "no.json" and "cannot be read" in draft.left["fsdp_config"][1]
