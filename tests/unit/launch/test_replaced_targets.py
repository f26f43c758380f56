"""Tests of replacing parts of a recipe: a new ``_target_`` drops the arguments of the previous one, a choice replaces
an earlier choice, and of two keys that exclude each other the later one takes effect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trireme.errors import Problem, UserError
from trireme.launch.cli import main
from trireme.launch.compose import compose
from trireme.launch.compose_sweep import sweep_jobs

BEGIN = "defaults: [/base, /model: llama_tiny, /data: files, _self_]\n"
RADAM = BEGIN + "optimizer:\n  _target_: torch.optim.RAdam\n  lr: 1e-3\ndata: {source: {paths: [a.txt]}}\n"
STDLIB = "pretrain/persimmon_stdlib"


def written(tmp_path: Path, text: str, name: str = "mine") -> str:
    (tmp_path / f"{name}.yaml").write_text(text)
    return str(tmp_path / f"{name}.yaml")


def test_the_optimizer_of_the_docs(tmp_path: Path) -> None:
    assert compose(written(tmp_path, RADAM)).raw["optimizer"] == {"_target_": "torch.optim.RAdam", "lr": 1e-3}


def test_what_later_files_write_beside_the_new_target_stays(tmp_path: Path) -> None:
    written(tmp_path, RADAM)
    text = "defaults: [mine, _self_]\noptimizer: {weight_decay: 0.5}\n"
    expected = {"_target_": "torch.optim.RAdam", "lr": 1e-3, "weight_decay": 0.5}
    assert compose(written(tmp_path, text, "more")).raw["optimizer"] == expected
    same = BEGIN + "optimizer: {_target_: trireme.trainer.optimizers.adamw, lr: 1}\n"
    assert compose(written(tmp_path, same)).raw["optimizer"]["betas"] == [0.9, 0.95]


def test_the_command_line_changes_a_target(tmp_path: Path) -> None:
    recipe = written(tmp_path, BEGIN)
    given = ["optimizer._target_=torch.optim.SGD", "optimizer.lr=0.5", "optimizer.betas=[1,2]"]
    composed = compose(recipe, given)
    assert composed.raw["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.5, "betas": [1, 2]}  # named: judged
    assert "optimizer.eps" in "".join(composed.notes)
    assert compose(recipe, composed.overrides).raw == composed.raw  # as a rank composes it


def test_a_choice_drops_what_the_new_target_does_not_take() -> None:
    composed = compose(STDLIB, ["data=hub", "data.source.path=x"])
    assert "exclude" not in composed.raw["data"]["source"]
    assert "data.source.exclude" in "".join(composed.notes)
    assert compose(STDLIB, ["optimizer=sgd"]).raw["optimizer"]["lr"] == 2e-3  # both targets take lr


def test_a_target_named_beside_a_choice_begins_anew_too() -> None:
    """Values that are null or open (``???``) are dropped as well."""
    source = "data.source._target_"
    for given in (["data=files"], ["data=hub"], []):
        composed = compose(STDLIB, [*given, f"{source}=mine.Own", "+data.source.count=3"])
        assert composed.raw["data"]["source"] == {"_target_": "mine.Own", "count": 3}
        assert compose(STDLIB, composed.overrides).raw == composed.raw  # as a rank composes it
    same = compose(STDLIB, ["data=files", f"{source}=trireme.trainer.data.sources.Files", "data.source.paths=[a]"])
    assert same.raw["data"]["source"]["split_text"] == "file"
    back = compose(STDLIB, ["data=files", f"{source}=trireme.trainer.data.sources.PythonSources"])
    assert set(back.raw["data"]["source"]) == {"_target_"}
    jobs = sweep_jobs(STDLIB, ["data=files", f"{source}=mine.Own,mine.Other"], [])
    assert [set(job.raw["data"]["source"]) for job in jobs] == [{"_target_"}] * 2
    assert compose(STDLIB, jobs[0].overrides).raw == jobs[0].raw


def test_a_later_file_can_make_a_value_required(tmp_path: Path) -> None:
    """``???`` in a later file makes the value required; OmegaConf alone would keep the value of the earlier file."""
    written(tmp_path, BEGIN + "optimizer: {lr: 1e-3}\n")
    recipe = written(
        tmp_path, "defaults: [mine, _self_]\ndata:\n  tokenizer:\n    path: ???\noptimizer:\n  lr: ???\n", "more"
    )
    raw = compose(recipe).raw
    assert (raw["data"]["tokenizer"]["path"], raw["optimizer"]["lr"]) == ("???", "???")
    assert compose(recipe, ["optimizer.lr=1"]).raw["optimizer"]["lr"] == 1


def test_a_mistyped_argument_is_still_a_problem() -> None:
    composed = compose(STDLIB, ["data=hub", "data.source.pth=x"])
    assert composed.raw["data"]["source"]["pth"] == "x"


@pytest.mark.parametrize(
    ("override", "names", "note"),
    [
        ("callbacks=export", ["flow", "progress", "sample", "export"], "callbacks=[default,sample,export]"),
        ("callbacks=[export]", ["flow", "progress", "sample", "export"], "callbacks=[default,sample,export]"),
        ("callbacks=minimal", ["flow", "metrics"], "left out: callbacks.sample"),
        ("callbacks=[minimal,sample]", ["flow", "metrics", "sample"], ""),
        ("callbacks=null", [], "left out: callbacks.sample"),
    ],
)
def test_callbacks_on_the_command_line(override: str, names: list[str], note: str) -> None:
    """The name of a callback adds it; a set, which contains ``flow``, replaces the recipe's callbacks."""
    composed = compose(STDLIB, [override])
    callbacks: dict[str, Any] = composed.raw["callbacks"]
    assert set(names) <= set(callbacks)
    assert "progress" in names or "progress" not in callbacks
    assert note in "".join(composed.notes)
    assert compose(STDLIB, composed.overrides).raw == composed.raw


def test_a_check_notes_replaced_callbacks_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", STDLIB, "callbacks=minimal"]) == 0
    assert capsys.readouterr().err.count("left out: callbacks.sample") == 1


def test_each_job_of_a_sweep_drops_its_own_arguments() -> None:
    with_sample, without = sweep_jobs(STDLIB, ["callbacks=[default,sample],minimal"], [])
    assert with_sample.raw["callbacks"]["sample"]["prompts"][0] == "def "
    assert "sample" not in without.raw["callbacks"]
    assert compose(STDLIB, without.overrides).raw == without.raw


@pytest.mark.parametrize(
    ("text", "overrides", "steps", "epochs"),
    [
        ("trainer: {epochs: 2}\n", ["trainer.max_steps=3"], 3, None),
        ("trainer: {max_steps: 3}\n", ["trainer.epochs=2"], None, 2),
        ("trainer: {max_steps: 3, epochs: 2}\n", [], 3, 2),  # both in one file: a contradiction, refused later
        ("trainer: {max_steps: 3}\n", ["trainer.max_steps=4", "trainer.epochs=2"], 4, 2),
        ("trainer: {max_steps: 3}\n", ["trainer.epochs=null"], 3, None),
    ],
)
def test_the_later_of_two_that_exclude_each_other_counts(
    tmp_path: Path, text: str, overrides: list[str], steps: int | None, epochs: int | None
) -> None:
    trainer = compose(written(tmp_path, BEGIN + text), overrides).raw["trainer"]
    assert (trainer["max_steps"], trainer["epochs"]) == (steps, epochs)


def test_a_recipe_wins_over_the_one_that_it_extends(tmp_path: Path) -> None:
    written(tmp_path, BEGIN + "trainer: {epochs: 2}\nscheduler: {warmup_ratio: 0.1}\n", "preset")
    text = "defaults: [preset, _self_]\ntrainer: {max_steps: 3}\nscheduler: {warmup_steps: 2}\n"
    raw = compose(written(tmp_path, text)).raw
    assert (raw["trainer"]["max_steps"], raw["trainer"]["epochs"]) == (3, None)
    assert (raw["scheduler"]["warmup_steps"], raw["scheduler"]["warmup_ratio"]) == (2, None)


def test_own_components_lie_beside_the_recipe_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trireme.trainer.component import locate

    here, beside = tmp_path / "here", tmp_path / "beside"
    here.mkdir()
    (beside / "mine_beside").mkdir(parents=True)
    (here / "mine_here.py").write_text("class Here: pass\n")
    (beside / "mine_beside" / "stuff.py").write_text("class Beside: pass\n")
    (here / "json").mkdir()  # a name of the standard library
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    before = list(__import__("sys").path)
    compose(written(beside, BEGIN))
    assert locate("json.JSONDecoder").__module__.startswith("json")
    assert __import__("sys").path == before  # only once something is found there
    assert locate("mine_here.Here").__name__ == "Here"
    assert locate("mine_beside.stuff.Beside").__name__ == "Beside"
    assert __import__("sys").path[: len(before)] == before
    with pytest.raises(ImportError):
        locate("mine_nowhere.Thing")


def test_overrides_may_stand_anywhere_in_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "defaults: [/base, override /plan: ddp, _self_, /model: llama_tiny, override /callbacks: minimal, /data: hub]\n"
    )
    raw = compose(written(tmp_path, text)).raw
    assert raw["plan"]["name"] == "ddp" and raw["model"]["family"] == "llama"
    assert main(["check", written(tmp_path, text.replace("ddp", "dpp"), "typo")]) == 2
    assert "plan = 'dpp'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written_as", "field", "fix"),
    [
        ("callbacks: [default]", "callbacks", "`- override /callbacks: [default]`"),
        ("optimizer: [sgd]", "optimizer", "`- override /optimizer: sgd`"),
        ("optimizer: [1]", "optimizer", "write its keys"),
        ("data: {source: [a.txt]}", "data.source", "write its keys"),
        ("optimizer: {betas: {a: 1}}", "optimizer.betas", "write a list"),
    ],
)
def test_a_list_where_a_mapping_is_expected_is_named(written_as: str, field: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        compose(written(tmp_path, f"{BEGIN}{written_as}\n"))
    (problem,) = caught.value.problems
    assert isinstance(problem, Problem) and problem.field == field and fix in problem.fix
    with pytest.raises(UserError, match="optimizer"):  # all at once
        compose(written(tmp_path, f"{BEGIN}optimizer: [1]\ncallbacks: [x]\n"))


def test_another_target_may_take_a_mapping_for_the_same_argument(tmp_path: Path) -> None:
    text = f"{BEGIN}optimizer: {{_target_: mine.Own, betas: {{a: 1}}}}\n"
    assert compose(written(tmp_path, text)).raw["optimizer"]["betas"] == {"a": 1}


def test_what_the_own_recipe_wrote_and_the_new_target_takes_stays(tmp_path: Path) -> None:
    text = f"{BEGIN}optimizer: {{lr: 0.25, betas: [0.5, 0.6]}}\ndata: {{source: {{paths: [a.txt], format: text}}}}\n"
    recipe = written(tmp_path, text)
    composed = compose(recipe, ["optimizer._target_=torch.optim.SGD"])
    assert composed.raw["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.25}
    assert "optimizer.betas" in "".join(composed.notes) and "optimizer.lr" not in "".join(composed.notes)
    assert compose(recipe, composed.overrides).raw == composed.raw  # as a rank composes it
    packaged = compose(STDLIB, ["optimizer._target_=torch.optim.SGD"]).raw["optimizer"]
    assert packaged == {"_target_": "torch.optim.SGD"}


MIXED = BEGIN + "data:\n  sources:\n    code: {source: {_target_: mine.Own}, weight: 3}\n"


def test_a_mixture_replaces_the_source_of_its_preset(tmp_path: Path) -> None:
    recipe = written(tmp_path, MIXED)
    data = compose(recipe).raw["data"]
    assert data["source"] is None and list(data["sources"]) == ["code"]
    more = compose(recipe, ["data.sources.code.weight=2", "data.sources.text={source:{_target_:mine.Other}}"])
    assert more.raw["data"]["sources"] == {
        "code": {"source": {"_target_": "mine.Own"}, "weight": 2},
        "text": {"source": {"_target_": "mine.Other"}},
    }
    assert list(
        compose(recipe, ["data.sources.a={source:{_target_:mine.A}}", "~data.sources.code"]).raw["data"]["sources"]
    ) == ["a"]


def test_a_choice_of_one_source_replaces_a_mixture_and_the_reverse(tmp_path: Path) -> None:
    recipe = written(tmp_path, MIXED)
    for given in (
        ["data=python_stdlib"],
        ["data=files", "data.source.paths=[a]"],
        ["data.source={_target_: mine.One}"],
    ):
        composed = compose(recipe, given)
        assert composed.raw["data"]["sources"] is None and composed.raw["data"]["source"]["_target_"], given
        assert compose(recipe, composed.overrides).raw == composed.raw  # as a rank composes it
    composed = compose(STDLIB, ["data=python_mixture"])
    assert composed.raw["data"]["source"] is None and "code" in composed.raw["data"]["sources"]
    assert compose(STDLIB, ["scheduler=linear", "scheduler.warmup_steps=3"]).raw["scheduler"]["warmup_steps"] == 3
