"""Tests of composing a recipe and its command-line overrides with Hydra: search path, choices, sweeps, and errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.recipes import FEW_FILES, TINY
from trireme.errors import Problem, UserError
from trireme.launch.cli import main
from trireme.launch.compose import compose
from trireme.launch.compose_sweep import sweep, sweep_folder, sweep_jobs
from trireme.launch.failures import OWN_LAUNCH
from trireme.launch.find_recipes import find_recipe, first_comment, list_recipes


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's recipe folder with a group option of its own."""
    folder = tmp_path / "own"
    (folder / "mine").mkdir(parents=True)
    (folder / "configs" / "optimizer").mkdir(parents=True)
    (folder / "mine" / "little.yaml").write_text(
        "# A little one.\n# trireme train mine/little\ndefaults:\n  - /base\n  - /model: llama_tiny\n  - /data: files\n"
        "  - override /optimizer: slow\n  - _self_\ntrainer:\n  max_steps: 3\n"
    )
    (folder / "configs" / "optimizer" / "slow.yaml").write_text("_target_: torch.optim.RAdam\nlr: 1e-6\n")
    return folder


def problem_of(*arguments: object) -> Problem:
    with pytest.raises(UserError) as caught:
        compose(*arguments)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert isinstance(problem, Problem)
    return problem


def test_all_defaults_are_in_the_data_and_overrides_win() -> None:
    composed = compose(
        str(TINY), ["trainer.max_steps=3", "+callbacks.extra={_target_: a.B}", "ema.decay=0.5", "~data.held_out"]
    )
    assert composed.raw["trainer"]["max_steps"] == 3
    assert composed.raw["trainer"]["log_every"] == 1  # from the dataclass
    assert composed.raw["callbacks"]["extra"] == {"_target_": "a.B"}
    assert composed.raw["ema"] == {"decay": 0.5}
    assert "held_out" not in composed.raw["data"]
    assert composed.raw["run"]["dir"] == "runs/tiny"
    assert not composed.problems


def test_interpolations_see_overrides() -> None:
    assert compose(str(TINY), ["data.tokenizer.vocab_size=300"]).raw["model"]["config"]["vocab_size"] == 300


def test_what_a_file_leaves_open_is_missing_although_the_schema_has_a_default(own: Path) -> None:
    assert compose("finetune/text").raw["model"]["weights"] == "???"
    (own / "configs" / "trainer").mkdir()
    (own / "configs" / "trainer" / "mine.yaml").write_text("log_every: ???\nglobal_batch_size: 8\n")
    recipe = own / "mine" / "little.yaml"
    recipe.write_text(recipe.read_text().replace("  - override", "  - /trainer: mine\n  - override") + "seed: ???\n")
    raw = compose(str(recipe), ["~data.held_out"], [str(own)]).raw
    assert (raw["trainer"]["log_every"], raw["trainer"]["max_steps"], raw["seed"]) == ("???", 3, "???")
    raw = compose(str(recipe), ["trainer.log_every=5", "seed=0"], [str(own)]).raw
    assert (raw["trainer"]["log_every"], raw["seed"]) == (5, 0)


def test_references_to_a_required_value_are_required_too() -> None:
    deepspeed = compose(str(TINY), ["plan=zero3_nvme"]).raw["plan"]["deepspeed"]
    assert deepspeed["offload_optimizer"]["nvme_path"] == deepspeed["offload_param"]["nvme_path"] == "???"


def test_groups_and_prefixes() -> None:
    composed = compose(str(TINY), ["plan=ddp", "ema=average", "++seed=4", "+tags.new=1"])
    assert composed.raw["plan"]["replicate"] == "auto"
    assert composed.raw["ema"]["decay"] == 0.999
    assert composed.raw["seed"] == 4
    assert composed.raw["tags"] == {"new": 1}


def test_composing_again_gives_the_same_data() -> None:
    composed = compose(str(TINY), ["plan=ddp", "optimizer.lr=1e-2", "run.dir='it\\'s here'"])
    assert composed.raw["run"]["dir"] == "it's here"
    again = compose(str(composed.recipe), composed.overrides)
    assert again.raw == composed.raw


COUNT = """
import os
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from trireme.launch.cli import main
from trireme.launch.compose import compose

load, loaded = ConfigLoaderImpl.load_configuration, []
ConfigLoaderImpl.load_configuration = lambda *a, **k: [loaded.append(k), load(*a, **k)][1]
for choice, own in {cases!r}:
    loaded.clear()
    if own:
        os.environ[{own_launch!r}] = "1"
    compose({tiny!r}, [choice])
    print(len(loaded))
"""


def test_hydra_composes_a_recipe_no_more_often_than_needed() -> None:
    """Once as asked for, and once as written if a choice may make arguments void. The test uses a new process, since
    Hydra composes more often in one that other tests have used."""
    cases = [("plan=ddp", False), ("model=gpt2_tiny", False), ("optimizer=adafactor", False)]
    code = COUNT.format(cases=[*cases, ("optimizer=adafactor", True)], own_launch=OWN_LAUNCH, tiny=str(TINY))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "1", "2", "1"], done.stderr


def test_a_file_may_choose_a_component_by_another_choice(own: Path) -> None:
    (own / "configs" / "optimizer" / "slow_adamw.yaml").write_text("_target_: torch.optim.SGD\nlr: 1e-2\n")
    recipe = own / "mine" / "little.yaml"
    text = recipe.read_text().replace("- override /optimizer: slow", "- override /optimizer: ${scheduler}_adamw")
    recipe.write_text(text.replace("- /data: files", "- /data: files\n  - override /scheduler: slow"))
    for name in ("slow", "other"):
        (own / "configs" / "scheduler").mkdir(exist_ok=True)
        (own / "configs" / "scheduler" / f"{name}.yaml").write_text("name: constant\n")
    (own / "configs" / "optimizer" / "other_adamw.yaml").write_text("_target_: torch.optim.Adagrad\n")
    recipe.write_text(recipe.read_text() + "optimizer:\n  nesterov: true\n")
    composed = compose(str(recipe), ["scheduler=other"], [str(own)])
    assert composed.raw["optimizer"]["_target_"] == "torch.optim.Adagrad"
    assert "nesterov" not in composed.raw["optimizer"], "written for SGD"


def test_only_the_command_decides_whether_it_is_a_sweep(own: Path) -> None:
    assert "--multirun" in compose(str(TINY), ["hydra.mode=MULTIRUN"]).problems[0].fix
    recipe = own / "mine" / "little.yaml"
    recipe.write_text(recipe.read_text() + "hydra:\n  mode: MULTIRUN\n")
    assert compose(str(recipe), [], [str(own)]).job == ""


def test_unknown_options_are_problems_with_the_nearest_and_do_not_hide_others() -> None:
    composed = compose(str(TINY), ["plan=ddpp", "optimizer=[adamw,sdg]", "nothing=1"])
    assert [(problem.field, problem.value, problem.fix) for problem in composed.problems] == [
        ("plan", "ddpp", "did you mean plan=ddp?"),
        ("optimizer", "sdg", "did you mean optimizer=sgd?"),
    ]
    assert composed.raw["nothing"] == 1


def test_a_run_takes_one_complete_option_of_a_group(own: Path) -> None:
    (problem,) = compose(str(TINY), ["plan=[ddp,zero2]"]).problems
    assert (problem.field, problem.value) == ("plan", "[ddp, zero2]")
    assert problem.fix == "choose one, such as plan=ddp; for a run of each: plan=ddp,zero2 -m"
    recipe = own / "mine" / "little.yaml"
    recipe.write_text(recipe.read_text().replace("- /data: files", "- /data: files\n  - override /plan: [ddp, zero2]"))
    with pytest.raises(UserError, match="chooses 2 complete options"):
        compose(str(recipe), [], [str(own)])


@pytest.mark.parametrize(
    ("group", "names", "once"),
    [
        ("tracker", "wandb,wandb", "wandb"),
        ("tracker", "wandb,mlflow,wandb", "wandb,mlflow"),
        ("callbacks", "default,export,export", "default,export"),
        ("callbacks", "export,export", "export"),
        ("plan", "ddp,ddp", "ddp"),
        ("optimizer", "adamw,adamw", "adamw"),
    ],
)
def test_an_option_is_named_once(group: str, names: str, once: str, own: Path) -> None:
    problems = compose(str(TINY), [f"{group}=[{names}]"]).problems
    assert [(each.field, each.fix) for each in problems] == [(group, f"name it once: {group}=[{once}]")]
    recipe = own / "mine" / "little.yaml"
    recipe.write_text(recipe.read_text().replace("- /data: files", f"- /data: files\n  - override /{group}: [{names}]"))
    with pytest.raises(UserError, match="more than once"):
        compose(str(recipe), [], [str(own)])


def test_an_option_of_one_s_own_may_be_merged_over_another(own: Path) -> None:
    (own / "configs" / "optimizer").mkdir(parents=True, exist_ok=True)
    (own / "configs" / "optimizer" / "slow.yaml").write_text("lr: 1e-9\n")
    composed = compose(str(own / "mine" / "little.yaml"), ["optimizer=[adamw,slow]"], [str(own)])
    assert not composed.problems
    assert composed.raw["optimizer"]["lr"] == 1e-9 and "adamw" in composed.raw["optimizer"]["_target_"]


def test_unreadable_overrides_are_reported() -> None:
    composed = compose(str(TINY), ["seed=x=1", "run.dir=it's"])
    assert [problem.field for problem in composed.problems] == ["seed", "run.dir"]
    assert "quotation mark" in composed.problems[1].why


@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_a_plus_before_a_key_changes_nothing(prefix: str) -> None:
    """Hydra wants ``+`` before new keys, and before no others; here the schema judges keys, whatever the prefix."""
    composed = compose(
        str(TINY), [f"{prefix}seed=3", f"{prefix}optimizer.lr=0.5", f"{prefix}plan=ddp", f"{prefix}a.b=1"]
    )
    assert (composed.raw["seed"], composed.raw["optimizer"]["lr"]) == (3, 0.5)
    assert composed.raw["plan"]["name"] == "ddp"
    assert composed.raw["a"] == {"b": 1}


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    recipe = tmp_path / "broken.yaml"
    recipe.write_text("defaults:\n  - /base\ntrainer:\n  max_steps: [1\n  epochs: 2\n")
    problem = problem_of(str(recipe))
    assert f"{recipe}:5" in problem.field
    assert "is not YAML" in problem.why


def test_missing_configuration_names_the_nearest(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("defaults:\n  - /base\n  - /model: llama_tinny\n")
    problem = problem_of(str(recipe))
    assert (problem.field, problem.value, problem.fix) == ("model", "llama_tinny", "did you mean llama_tiny?")


def test_bad_interpolation(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("defaults:\n  - /base\n  - _self_\nseed: ${nothing.here}\n")
    (problem,) = compose(str(recipe)).problems
    assert (problem.field, problem.value) == ("seed", "${nothing.here}")
    assert "nothing.here" in problem.why


def test_own_folder_of_recipes_and_groups(own: Path) -> None:
    assert find_recipe("mine/little", [str(own)]) == own / "mine" / "little.yaml"
    composed = compose("mine/little", ["seed=2"], [str(own)])
    assert composed.raw["optimizer"] == {"_target_": "torch.optim.RAdam", "lr": 1e-6}
    assert composed.raw["run"]["dir"] == "runs/little"
    names = [name for name, _ in list_recipes([str(own)])]
    assert "mine/little" in names
    assert "pretrain/persimmon_stdlib" in names
    assert not any(name.startswith("configs") for name in names)
    assert first_comment(own / "mine" / "little.yaml") == "A little one."


def test_recipes_beside_the_command_are_found(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.rename(tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine/little") == Path("recipes/mine/little.yaml")


@pytest.mark.parametrize(
    ("recipe", "fix"),
    [
        ("pretrain/persimon_stdlib", "pretrain/persimmon_stdlib"),
        ("persimmon_stdlib", "pretrain/persimmon_stdlib"),
        ("xyz", "trireme recipes"),
        ("no/such.yaml", "trireme recipes"),
    ],
)
def test_unknown_recipes(recipe: str, fix: str) -> None:
    problem = problem_of(recipe)
    assert problem.value == recipe
    assert fix in problem.fix


def test_recipe_folder_must_exist(tmp_path: Path) -> None:
    assert problem_of("x", [], [str(tmp_path / "none")]).field == "--recipe-dir"


def test_a_sweep_gives_every_job_a_folder_and_is_checked_as_a_whole(tmp_path: Path) -> None:
    checked, ran = [], []
    roots = f"data.source.roots=[{FEW_FILES[0]}]"
    overrides = [f"run.dir={tmp_path}/s", roots, "data.shuffle=false", "optimizer.lr=1e-2,1e-3", "plan=single,ddp"]
    sweep(str(TINY), overrides, [], checked.extend, ran.append)
    assert len(checked) == len(ran) == 4
    assert [job.raw for job in checked] == [job.raw for job in ran]
    assert [job.raw["run"]["dir"] for job in ran] == [
        f"{tmp_path}/s/optimizer.lr={lr},plan={plan}" for lr in ("0.01", "0.001") for plan in ("single", "ddp")
    ]
    assert {(job.raw["optimizer"]["lr"], job.raw["plan"]["name"]) for job in ran} == {
        (0.01, "single"),
        (0.01, "ddp"),
        (0.001, "single"),
        (0.001, "ddp"),
    }
    for job in ran:
        assert compose(str(job.recipe), job.overrides).raw == job.raw


def test_jobs_of_a_sweep_lie_beside_the_run_of_their_recipe() -> None:
    """In the folder that the command line names, or in one of the sweep's own."""
    assert sweep_folder(TINY, ["seed=1,2"], []) == "runs/tiny_sweep"
    assert sweep_folder(TINY, ["seed=1,2", "run.dir=runs/mine"], []) == "runs/mine"
    jobs = sweep_jobs(str(TINY), ["seed=1,2"], [])
    assert [job.raw["run"]["dir"] for job in jobs] == ["runs/tiny_sweep/seed=1", "runs/tiny_sweep/seed=2"]


def test_a_refused_sweep_runs_nothing_and_a_failed_job_ends_it(tmp_path: Path) -> None:
    ran: list[object] = []

    def refuse(jobs: object) -> None:
        raise UserError("no")

    def fail(job: object) -> None:
        ran.append(job)
        raise RuntimeError("failed")

    with pytest.raises(UserError):
        sweep(str(TINY), [f"run.dir={tmp_path}/s", "seed=1,2"], [], refuse, ran.append)
    assert not ran
    assert not (tmp_path / "s").exists()
    with pytest.raises(RuntimeError):
        sweep(str(TINY), [f"run.dir={tmp_path}/s", "seed=1,2"], [], lambda jobs: None, fail)
    assert len(ran) == 1


def test_a_list_in_the_place_of_a_mapping_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(TINY), "model.config=[1]"]) == 2
    message = capsys.readouterr().err
    assert "is a mapping of keys, and a list was given" in message and "Config" not in message
