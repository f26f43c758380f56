"""Tests of recipe files and overrides: how recipes build on others, and that an error about a mistake names the file,
line or key.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.recipes import TINY
from trireme.errors import Problem, UserError
from trireme.launch.cli import main
from trireme.launch.compose import compose
from trireme.launch.find_recipes import find_recipe, list_recipes
from trireme.launch.train import checked

BEGIN = "defaults: [/base, /model: llama_tiny, /data: files, _self_]\n"


def said(recipe: Path | str, *overrides: str) -> str:
    """The text of all problems of composing, whether they are raised at once or collected."""
    try:
        problems = compose(str(recipe), overrides).problems
    except UserError as error:
        problems = error.problems
    text = "\n".join(map(str, problems))
    for raw in ("Traceback", "hydra.cc", "full_key", "Could not", "ConfigKeyError", "++"):
        assert raw not in text
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b\n", "holds a list"),
        (b"hello", "holds a single value"),
        (b"defaults:\n\t- /base\n", "with spaces"),
        (BEGIN.encode() + b"x: \xe9\n", "byte 0xe9 in line 2"),
        (BEGIN.encode("utf-16"), "UTF-16"),
        (b"a\0b: 3", "binary"),
        (BEGIN.encode() + b"x: " + b"[" * 3000 + b"]" * 3000, "nested too deeply"),
        (BEGIN.encode() + b"x: &a [*a]\n", "refers to itself"),
        (BEGIN.encode() + b"seed: 1\ntrainer: {max_steps: 3, max_steps: 4}\nseed: 2\n", "seed\n  is given twice"),
        (BEGIN.encode() + b"trainer:\n  max_steps: 3\n  max_steps: 4\n", "trainer.max_steps\n  is given twice"),
        (BEGIN.encode() + b"x: !!python/object:os.system {}\n", ":2:4"),
        (BEGIN.encode() + b"seed: 3: 4\n", ":2:8"),
        (BEGIN.encode() + b"seed: ${nope}\n", "seed = '${nope}'\n  refers to a key that does not exist (nope)"),
        (BEGIN.encode() + b"x: ${y}\ny: ${x}\n", "x = '${y}'\n  refers to itself"),
        (BEGIN.encode() + b"x: ${\n", "cannot be read"),
        (BEGIN.encode() + b"run: {dir: '${oc.env:TRIREME_NOPE}'}\n", "environment variable TRIREME_NOPE"),
        (
            BEGIN.encode() + b"run: {dir: 'runs/${hydra:job.confg}_x'}\n",
            "run.dir = 'runs/${hydra:job.confg}_x'\n  refers to hydra:job.confg",
        ),
        (BEGIN.encode() + b"run: {dir: 'runs/${hydra:nosuch.key}'}\n", "refers to hydra:nosuch.key"),
        (BEGIN.encode() + b"run: {dir: 'runs/${hydra:job.num}'}\n", "no value outside of a sweep"),
        (BEGIN.encode() + b"run: {dir: 'runs/${nores:abc}'}\n", "${hydra:job.config_name}"),
        (BEGIN.encode() + b"plan: ddp\n", "`- override /plan: ddp`"),
        (BEGIN.encode() + b"run: 3\n", "run = 3"),
        (b"model: {family: llama}\n", "defaults: [/base"),
        (b"default: [/base]\n", "write defaults: with an s"),
        (b"defaults: [/model: llama_tiny, _self_]\n", "does not include /base"),
        (b"defaults: /base\n", "is not a list"),
        (b"defaults:\nseed: 3\n", "is not a list"),
        (b"defaults: [/base, 3]\n", "neither a file nor a choice"),
        (b"defaults: [/bse, _self_]\n", "did you mean base?"),
        (b"defaults: [/base, /modle: x, _self_]\n", "did you mean /model?"),
        (b"defaults: [_self_, /base]\nseed: 3\n", "write _self_ last"),
        (b"defaults: [/base, /model: '???', _self_]\n", "model\n  must be chosen"),
        (b"defaults: [/base, override /nope: x, _self_]\n", "not among the choices"),
        (b"defaults: [/base, override /plan: '${nope}']\n", "a list of defaults knows only the choices"),
        (b"defaults: [/base, override /plan: '${oc.env:TRIREME_NOPE}']\n", "${oc.env:TRIREME_NOPE,NAME}"),
        (b"defaults: [pretrain/persimmon_stdlib]\n", "write `- pretrain/persimmon_stdlib@_global_`"),
        (b"defaults: [pretrain/persimon_stdlib@_global_]\n", "did you mean pretrain/persimmon_stdlib@_global_?"),
        (b"defaults: [mine@_global_]\n", "make recipes build on each other without end: mine.yaml -> mine.yaml"),
        (b"defaults: [/pretrain: persimmon_stdlib, _self_]\n", "write `- pretrain/persimmon_stdlib@_global_`"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_bytes(content)
    assert words in said(recipe)


def test_a_reference_to_nothing_hides_no_other_problem(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "defaults: [pretrain/persimmon_stdlib@_global_, _self_]\n"
        "optimizer: {lr: '${nope}', betas: ['${nope}', 0.9]}\ntrainer: {max_step: 3, log_every: 0}\n"
        "run: {dir: 'runs/${nope}'}\n"
    )
    with pytest.raises(UserError) as caught:
        checked(
            compose(
                str(recipe),
                ["trainer.eval_every=${trainer.eval_every}", "optimizer.eps=${model.nope}", "plan.tensor=${nope}"],
            ),
            None,
        )
    assert {problem.field for problem in caught.value.problems if isinstance(problem, Problem)} == {
        *("optimizer.lr", "optimizer.betas.0", "optimizer.eps", "trainer.eval_every"),
        *("trainer.max_step", "trainer.log_every", "run.dir", "plan.tensor"),
    }


def test_all_wrong_choices_of_a_list_of_defaults_are_named(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "defaults: [/base, /model: llama_tiny, /data: filez, override /optimizer: lionn, override /plan: ddp,"
        " override /callbacks: [default, smaple]]\n"
    )
    words = said(recipe)
    for text in ("data = 'filez'", "optimizer = 'lionn'", "did you mean lion?", "callbacks = 'smaple'"):
        assert words.count(text) == 1, words
    assert "ddp" not in words


def test_a_choice_that_cannot_be_resolved_is_named_by_its_group(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "defaults: [pretrain/persimmon_stdlib@_global_, override /plan: '${oc.env:TRIREME_NOPE}',"
        " override /optimizer: lionn]\n"
    )
    assert "plan = '${oc.env:TRIREME_NOPE}'" in (words := said(recipe)) and words.count("TRIREME_NOPE,NAME") == 1
    assert "did you mean lion?" in words
    assert "TRIREME_NOPE" not in said(recipe, "plan=ddp")  # a choice that is replaced
    for text in ("plan=${oc.env:TRIREME_NOPE}", "plan='${oc.env:TRIREME_NOPE}'", "callbacks=[${oc.env:TRIREME_NOPE}]"):
        assert f"{text.partition('=')[0]} = '${{oc.env:TRIREME_NOPE}}'" in said("pretrain/persimmon_stdlib", text)


def test_a_recipe_builds_on_another(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "defaults: [pretrain/persimmon_stdlib@_global_, override /optimizer: lion]\ntrainer: {max_steps: 7}\n"
    )
    raw = compose(str(recipe)).raw
    assert raw["model"]["family"] == "persimmon"
    assert (raw["trainer"]["max_steps"], raw["run"]["dir"]) == (7, "runs/mine")
    assert raw["optimizer"]["_target_"].endswith("lion")
    assert compose(str(recipe), ["plan=zero2", "callbacks=export"]).raw["plan"]["name"] == "zero2"


@pytest.mark.parametrize("name", ["first@_global_", "mine/first@_global_", "/mine/first@_global_"])
def test_a_recipe_in_a_folder_builds_on_others_by_plain_names(name: str, tmp_path: Path) -> None:
    """Alone, and where another recipe builds on it, from its own folder, from above or from beside."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    first = "defaults: [pretrain/persimmon_stdlib@_global_, override optimizer: lion]\nseed: 7\n"
    (tmp_path / "mine" / "first.yaml").write_text(first)
    (tmp_path / "mine" / "second.yaml").write_text(f"defaults: [{name}]\ntrainer: {{max_steps: 7}}\n")
    (tmp_path / "other" / "third.yaml").write_text("defaults: [mine/second@_global_, override plan: zero2]\n")
    for recipe in ("mine/first", "mine/second", "other/third"):
        raw = compose(recipe, recipe_dirs=[str(tmp_path)]).raw
        assert raw["seed"] == 7 and raw["optimizer"]["_target_"].endswith("lion"), recipe
        assert (raw["trainer"]["max_steps"] == 7) == (recipe != "mine/first")
    assert raw["plan"]["name"] == "zero2"


def test_a_recipe_of_a_folder_that_is_not_there_is_named_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "mine").mkdir(parents=True)
    (tmp_path / "recipes" / "mine" / "first.yaml").write_text("defaults: [mine/last@_global_]\n")
    (tmp_path / "recipes" / "mine" / "second.yaml").write_text("defaults: [mine/fist@_global_]\n")
    (tmp_path / "recipes" / "third.yaml").write_text("defaults: [mine/second@_global_]\n")
    for recipe in ("mine/second", "third"):
        words = said(recipe)
        assert "defaults = 'mine/fist'" in words and "did you mean mine/first@_global_?" in words, words


def test_a_folder_and_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "is a folder" in said(tmp_path / "folder.yaml")
    (tmp_path / "shut.yaml").write_text(BEGIN)

    def denied(self: Path) -> bytes:  # the tests may run as root, who may read everything
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert "cannot be read: Permission denied" in said(tmp_path / "shut.yaml")


@pytest.mark.parametrize("recipe", ["", "  ", None, 3, ["a"]])
def test_what_is_no_name_of_a_recipe(recipe: object) -> None:
    with pytest.raises(UserError, match="RECIPE"):
        find_recipe(recipe)  # type: ignore[arg-type]


def test_a_byte_order_mark_and_the_other_suffix_are_read(tmp_path: Path) -> None:
    (tmp_path / "marked.yaml").write_bytes(b"\xef\xbb\xbf" + BEGIN.encode())
    assert compose(str(tmp_path / "marked.yaml")).raw["run"]["dir"] == "runs/marked"
    (tmp_path / "plain.yml").write_text(BEGIN + "seed: 5\n")
    composed = compose(str(tmp_path / "plain.yml"))
    assert (composed.raw["seed"], composed.raw["run"]["dir"]) == (5, "runs/plain")
    assert compose(str(composed.recipe), composed.overrides).raw == composed.raw
    assert compose("plain", [], [str(tmp_path)]).raw == composed.raw
    assert str(tmp_path / "plain.yml") in said(tmp_path / "plain.yaml")


def test_without_self_the_recipes_own_values_win_and_nothing_is_warned_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [/base, /model: llama_tiny, /data: files]\noptimizer: {lr: 0.5}\nseed: 3\n"
    )
    raw = compose(str(tmp_path / "mine.yaml")).raw
    assert (raw["optimizer"]["lr"], raw["seed"]) == (0.5, 3)
    assert not [warning for warning in recwarn if "_self_" in str(warning.message)]


def test_a_recipe_that_hides_the_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BEGIN)
    assert "hides trireme's own /base" in said(tmp_path / "base.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "is not an override: it has no ="),
        ("seed=", "seed\n  has no value"),
        ("=3", "the key is missing"),
        ("seed =3", "spaces around ="),
        ("optimizer..lr=1", "is not a key"),
        ("seed[0]=3", "is not a key"),
        ("run.dir=it's", 'run.dir = "it\'s"\n  has a quotation mark that is not closed'),
        ("data.source.paths=[a,b", "bracket that is not closed: ] is missing"),
        ("search.space={a:{low:1,high:[2", "'search.space={a:{low:1,high:[2]}}'"),
        ("data.source.paths=[a,b]]", "closes a bracket ] that was not opened"),
        ("data.source.paths=[a,b}", "closes a bracket } that was not opened"),
        ("optimizer.lr=1,2", "add -m"),
        ("~nope", "nope\n  cannot be left out"),
        ("~optimizer.lr=5", "optimizer.lr\n  is 0.001, not 5"),
        ("seed=${nope}", "seed = '${nope}'\n  refers to a key that does not exist"),
        ("run.dir=${run.dir}", "run.dir = '${run.dir}'\n  refers to itself"),
        ("model=null", "model\n  cannot be null"),
        ("plan=null", "plan\n  cannot be null"),
        ("plan=3", "did you mean plan=3d?"),
        ("optimizer={lr: 1}", "optimizer.lr=..."),
        ("plan@foo=ddp", "plan@foo"),
        ("hydra/launcher=nope", "known here: basic"),
        ("plan=ddp.yaml", "write plan=ddp"),
    ],
)
def test_invalid_overrides_are_refused_with_a_reason(override: str, words: str) -> None:
    assert words in said(TINY, override)


@pytest.mark.parametrize("override", ["ema=null", "~ema", "callbacks=null", "~callbacks", "tracker=null"])
def test_groups_that_a_run_can_go_without(override: str) -> None:
    group = override.strip("~").partition("=")[0]
    assert not compose(str(TINY), ["ema=average", override]).raw.get(group) or group == "tracker"


def test_only_the_recipe_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "RECIPE\n  is missing\n" in capsys.readouterr().err


def test_a_sweep_is_checked_and_problems_name_their_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), "-m", "trainer.micro_batch_size=2,3", "seed=x"]) == 2
    message = capsys.readouterr().err
    assert "(job trainer.micro_batch_size=3)" in message
    assert message.count("seed = 'x'") == 1
    assert main(["check", str(TINY), "-m", "seed=1,2"]) == 0


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("optimizer: sgd", "`- override /optimizer: sgd`"),
        ("scheduler: linear", "`- override /scheduler: linear`"),
        ("callbacks: minimal", "`- override /callbacks: minimal`"),
        ("callbacks: [minimal, sample]", "`- override /callbacks: [minimal, sample]`"),
        ("model: llama_tiny", "`- /model: llama_tiny`"),
        ("ema: average", "`- override /ema: average`"),
        ("tracker: tensorboard", "`- override /tracker: tensorboard`"),
    ],
)
def test_a_choice_that_is_written_as_a_key_is_told_its_place(line: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [/base, /data: files]\n{line}\n")
    assert fix in said(tmp_path / "mine.yaml")


def test_callbacks_that_are_no_mapping_are_one_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [/base, /data: files]\ncallbacks: 3\n")
    assert main(["check", str(tmp_path / "mine.yaml")]) == 2
    assert "callbacks = 3\n     expected a mapping of components by name" in capsys.readouterr().err


def test_a_choice_of_the_recipe_is_not_put_down_to_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults:\n  - /base\n  - override /plan: fsdpp\n")
    text = said(tmp_path / "mine.yaml")
    assert "did you mean fsdp" in text and "asked for" not in text
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "two.yaml").write_text("defaults: [dpp]\ntensor: 2\n")
    (tmp_path / "mine.yaml").write_text("defaults:\n  - /base\n  - override /plan: two\n")
    assert "there is no such configuration (asked for in plan/two)" in said(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("choice", "override", "group"),
    [
        ("/collator: null", "collator=causal_lm", "collator"),
        ("/tracker: tensorboard", "seed=1", "tracker"),
        ("/tracker: tensorboard", "tracker=none", "tracker"),
        ("/optimizer: sgd", "seed=1", "optimizer"),
        ("/ema: null", "ema=average", "ema"),
    ],
)
def test_a_second_choice_of_a_group_is_put_down_to_the_defaults(
    choice: str, override: str, group: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults: [/base, /data: files, {choice}, _self_]\n")
    text = said(tmp_path / "mine.yaml", override)
    assert text.startswith(f"defaults\n  choose {group} a second time") and f"`- override /{group}: " in text


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.yaml")
    assert "is a pipe or a device, not a file" in said(tmp_path / "mine.yaml")
    assert "mine" not in dict(list_recipes([str(tmp_path)]))
