"""Test DeepSpeed's JSON configuration, which is a user's own file or is made from the options under ``plan.deepspeed``.
What it leaves out or sets to "auto" is filled in from the recipe; contradictions and unknown keys are refused. Also
tested: DeepSpeed's operators are compiled once for each environment, and reused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trireme.configs.key_list import group_options
from trireme.errors import Problem
from trireme.parallel.plan import Plan
from trireme.parallel.recipe_values import RecipeValues
from trireme.parallel.zero.check_deepspeed import check_deepspeed
from trireme.parallel.zero.deepspeed_json import deepspeed_config
from trireme.parallel.zero.json_keys import model_tree
from trireme.parallel.zero.library import installed
from trireme.parallel.zero.operators import PATIENCE, aio_compatible, load_operator, one_at_a_time, own_folder
from trireme.parallel.zero.options import Aio, DeepSpeedOptions, Fp16, OffloadOptimizer, OffloadParam

pytestmark = pytest.mark.skipif(not installed(), reason="deepspeed is not installed")
ADAMW = {
    "_target_": "trireme.trainer.optimizers.adamw",
    "lr": 3e-4,
    "betas": [0.9, 0.95],
    "eps": 1e-8,
    "weight_decay": 0.1,
    "implementation": "auto",
}
RECIPE = RecipeValues(
    global_batch_size=64,
    micro_batch_size=4,
    max_grad_norm=1.0,
    max_steps=1000,
    optimizer=ADAMW,
    schedule="linear",
    warmup_steps=50,
    min_lr_ratio=0.0,
    hidden_size=768,
)
PUBLISHED: dict[str, Any] = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "last_batch_iteration": -1,
            **dict.fromkeys(("total_num_steps", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto"),
        },
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu", "pin_memory": True},
        "offload_param": {"device": "cpu", "pin_memory": True},
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "aio": {"block_size": 262144, "queue_depth": 32, "thread_count": 1, "single_submit": False, "overlap_events": True},
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
"""A complete file, as examples of DeepSpeed and transformers show it."""


def _typed(recipe: RecipeValues = RECIPE, precision: Any = "fp32", **options: Any) -> tuple[dict, list[Problem]]:
    plan = Plan(shard="auto", data_parallel="deepspeed", precision=precision, deepspeed=DeepSpeedOptions(**options))
    return deepspeed_config(plan, recipe, data_ranks=2)


def _file(
    tmp_path: Path, content: dict | str, recipe: RecipeValues = RECIPE, precision: Any = "fp32"
) -> tuple[dict, dict[str, Problem]]:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    config, problems = deepspeed_config(Plan(shard="auto", precision=precision, deepspeed=str(path)), recipe, 2)
    return config, {problem.field.removeprefix("plan.deepspeed:"): problem for problem in problems}


def _changed(**changes: Any) -> dict[str, Any]:
    """The published file with other values at dotted paths (``__`` for a dot)."""
    content = json.loads(json.dumps(PUBLISHED))
    for path, value in changes.items():
        *parents, key = path.split("__")
        block = content
        for parent in parents:
            block = block.setdefault(parent, {})
        block[key] = value
    return content


# -- filling -----------------------------------------------------------------------------------------------------


def test_published_file_is_filled_by_the_published_rules(tmp_path: Path) -> None:
    config, problems = _file(tmp_path, PUBLISHED)
    assert not problems
    zero = config["zero_optimization"]
    assert zero["reduce_bucket_size"] == 4_000_000  # 768 * 768 would be many small messages
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * 768 * 768)
    assert zero["stage3_param_persistence_threshold"] == 10 * 768
    assert config["optimizer"]["params"] == {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    assert config["scheduler"]["params"] == {
        "last_batch_iteration": -1,
        "total_num_steps": 1000,
        "warmup_min_lr": 0.0,
        "warmup_max_lr": 3e-4,
        "warmup_num_steps": 50,
        "warmup_type": "linear",
    }
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (64, 4)
    assert config["gradient_accumulation_steps"] == 64 // (4 * 2)
    assert config["gradient_clipping"] == 1.0
    assert config["fp16"]["enabled"] is False
    assert config["aio"]["intra_op_parallelism"] == 1 and "thread_count" not in config["aio"]
    assert "auto" not in json.dumps(config)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_typed_options_give_a_config_that_deepspeed_takes(stage: Any, precision: Any) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config, problems = _typed(precision=precision, stage=stage)
    assert not problems
    DeepSpeedZeroConfig(**config["zero_optimization"])
    assert "auto" not in json.dumps(config)
    assert config.get("fp16", {}).get("enabled", False) == (precision == "fp16")
    assert config.get("bf16", {}).get("enabled", False) == (precision == "bf16")


def test_typed_options_reach_the_json() -> None:
    config, problems = _typed(
        precision="fp16",
        stage=3,
        offload_optimizer=OffloadOptimizer("nvme", "/tmp/x", buffer_count=5),
        offload_param=OffloadParam("cpu", pin_memory=False),
        aio=Aio(queue_depth=16),
        fp16=Fp16(initial_scale_power=20, hysteresis=3),
        communication_data_type="fp32",
        use_node_local_storage=True,
        stage3_prefetch_bucket_size=77,
    )
    assert not problems
    assert config["zero_optimization"]["offload_optimizer"]["nvme_path"] == "/tmp/x"
    assert config["zero_optimization"]["offload_optimizer"]["buffer_count"] == 5
    assert config["zero_optimization"]["offload_param"]["pin_memory"] is False
    assert config["zero_optimization"]["stage3_prefetch_bucket_size"] == 77
    assert config["aio"]["queue_depth"] == 16
    assert (config["fp16"]["initial_scale_power"], config["fp16"]["hysteresis"]) == (20, 3)
    assert config["communication_data_type"] == "fp32"
    assert config["checkpoint"] == {"use_node_local_storage": True}


def test_no_clipping_is_zero_not_deepspeeds_one() -> None:
    assert _typed(replace(RECIPE, max_grad_norm=None))[0]["gradient_clipping"] == 0.0


def test_what_a_file_leaves_out_is_taken_from_the_recipe(tmp_path: Path) -> None:
    config, problems = _file(tmp_path, {"zero_optimization": {"stage": 2}}, precision="bf16")
    assert not problems
    assert config["train_batch_size"] == 64 and config["bf16"] == {"enabled": True}
    assert "reduce_bucket_size" not in config["zero_optimization"]  # DeepSpeed's default, as the file has it


# -- contradictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "source"),
    [
        ("train_batch_size", 32, "trainer.global_batch_size"),
        ("train_micro_batch_size_per_gpu", 8, "trainer.micro_batch_size"),
        ("gradient_accumulation_steps", 4, "trainer.global_batch_size / (trainer.micro_batch_size x 2 data ranks)"),
        ("gradient_clipping", 0.5, "trainer.max_grad_norm"),
        ("fp16.enabled", True, "plan.precision"),
        ("bf16.enabled", True, "plan.precision"),
        ("optimizer.params.lr", 1e-3, "optimizer.lr"),
        ("optimizer.params.betas", [0.8, 0.999], "optimizer.betas"),
        ("optimizer.params.weight_decay", 0.0, "optimizer.weight_decay"),
        ("scheduler.params.warmup_max_lr", 1e-3, "optimizer.lr"),
        ("scheduler.params.warmup_num_steps", 10, "scheduler.warmup_steps"),
        ("scheduler.params.total_num_steps", 10, "trainer.max_steps"),
        ("scheduler.params.warmup_type", "log", "scheduler.name"),
    ],
)
def test_contradiction_names_both_sides(tmp_path: Path, path: str, value: Any, source: str) -> None:
    _, problems = _file(tmp_path, _changed(**{path.replace(".", "__"): value}))
    assert list(problems) == [path]
    assert problems[path].value == value
    assert source in problems[path].why and source in problems[path].fix + problems[path].why


def test_equal_explicit_values_are_no_contradiction(tmp_path: Path) -> None:
    content = _changed(
        train_batch_size=64,
        train_micro_batch_size_per_gpu=4,
        gradient_accumulation_steps=8,
        gradient_clipping=1,
        optimizer__params__lr=0.0003,
        fp16__enabled=False,
    )
    assert not _file(tmp_path, content)[1]


def test_batch_arithmetic_of_the_file_itself(tmp_path: Path) -> None:
    content = _changed(train_batch_size=64, train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=4)
    problems = _file(tmp_path, content)[1]
    assert list(problems) == ["train_batch_size"]
    assert "4 x 4 x 2 = 32" in problems["train_batch_size"].why


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"zero_optimization__stage": 2}, "zero_optimization.offload_param.device"),
        ({"zero_optimization__stage": 0}, "zero_optimization.offload_optimizer.device"),
        ({"zero_optimization__offload_param": {"device": "nvme"}}, "zero_optimization.offload_param.nvme_path"),
        ({"zero_optimization__overlap_comm": "yess"}, "zero_optimization.overlap_comm"),
        ({"zero_optimization__stage": 4}, "zero_optimization.stage"),
        ({"steps_per_print": "auto"}, "steps_per_print"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "torch_autocast.enabled"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel"),
        ({"amp": {"enabled": "auto", "opt_level": "auto"}}, "amp"),
        ({"fp16": True}, "fp16"),
    ],
)
def test_other_refusals(tmp_path: Path, changes: dict[str, Any], place: str) -> None:
    assert place in _file(tmp_path, _changed(**changes))[1]


# -- unknown keys, unreadable files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("zero_optimisation", "zero_optimization"),
        ("gradient_cliping", "gradient_clipping"),
        ("fp16.initial_scale_powr", "initial_scale_power"),
        ("zero_optimization.offload_params", "offload_param"),
        ("zero_optimization.offload_param.pin_memry", "pin_memory"),
        ("optimizer.params.weight_decy", "weight_decay"),
        ("optimizer.parms", "params"),
        ("scheduler.params.warmup_steps", "warmup_num_steps"),
        ("aio.que_depth", "queue_depth"),
        ("checkpoint.use_node_local_storag", "use_node_local_storage"),
        ("tensorboard.output_pth", "output_path"),
    ],
)
def test_unknown_key_at_any_depth_names_the_nearest(tmp_path: Path, path: str, near: str) -> None:
    _, problems = _file(tmp_path, _changed(**{path.replace(".", "__"): 1}))
    assert list(problems) == [path]
    assert near in problems[path].fix


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("zero_optimization.aio", "move it to the top level of the file"),
        ("zero_optimization.gradient_clipping", "move it to the top level of the file"),
        ("overlap_comm", 'move it into "zero_optimization"'),
        ("fp16.round_robin_gradients", 'move it into "zero_optimization"'),
        ("queue_depth", 'move it into "aio"'),
    ],
)
def test_a_key_at_another_depth_says_where_it_belongs(tmp_path: Path, path: str, fix: str) -> None:
    """The pages of transformers show ``aio`` inside ``zero_optimization``."""
    _, problems = _file(tmp_path, _changed(**{path.replace(".", "__"): 1}))
    assert problems[path].fix == fix


@pytest.mark.parametrize(
    ("kind", "fix"),
    [
        ("Lion", "set optimizer=lion, or remove"),
        ("SGD", "set optimizer=sgd, or remove"),
        ("Adagrad", "torch.optim.Adagrad} in the recipe, or remove"),
        ("Lamb", "remove this block"),
    ],
)
def test_an_optimizer_that_disagrees_is_offered_only_if_it_is_there(tmp_path: Path, kind: str, fix: str) -> None:
    _, problems = _file(tmp_path, _changed(optimizer={"type": kind, "params": {}}))
    assert fix in problems["optimizer.type"].fix
    offered = re.search(r"optimizer=(\w+)", problems["optimizer.type"].fix)
    assert not offered or offered[1] in group_options("optimizer")


def test_nothing_is_offered_that_is_not_there(tmp_path: Path) -> None:
    _, problems = _file(tmp_path, _changed(autotuning={"enabled": True}))
    assert "trireme search" not in problems["autotuning"].fix and "trireme batch-size" in problems["autotuning"].fix


def test_every_key_of_deepspeeds_own_models_is_known() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    tree = model_tree(DeepSpeedZeroConfig)
    assert {"stage3_prefetch_bucket_size", "prefetch_bucket_size", "round_robin_gradients"} <= set(tree)
    assert {"device", "nvme_path", "buffer_count", "fast_init", "ratio"} <= set(tree["offload_optimizer"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"train_batch_size": 8,}', "is not JSON"),
        ('{"fp16": {"enabled": false, "enabled": true}}', "'enabled' twice"),
        ("[1, 2]", "one JSON object"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, why: str) -> None:
    problems = _file(tmp_path, text)[1]
    assert why in problems["plan.deepspeed"].why


def test_missing_file() -> None:
    problems = deepspeed_config(Plan(shard="auto", deepspeed="/nowhere/ds.json"), RECIPE, 2)[1]
    assert [(problem.field, problem.value) for problem in problems] == [("plan.deepspeed", "/nowhere/ds.json")]


# -- optimizers and schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [False, True])
@pytest.mark.parametrize("scheduler", [False, True])
def test_table_of_combinations(tmp_path: Path, optimizer: bool, scheduler: bool) -> None:
    content = _changed()
    content = {key: value for key, value in content.items() if key != "optimizer" or optimizer}
    content = {key: value for key, value in content.items() if key != "scheduler" or scheduler}
    problems = _file(tmp_path, content)[1]
    assert list(problems) == (["optimizer"] if optimizer and not scheduler else [])


@pytest.mark.parametrize(
    ("kind", "schedule", "fits"),
    [
        ("WarmupLR", "constant_with_warmup", True),
        ("WarmupLR", "linear", False),
        ("WarmupDecayLR", "cosine", False),
        ("WarmupCosineLR", "cosine", True),
        ("OneCycle", "linear", True),
    ],
)
def test_scheduler_stands_for_the_recipes(tmp_path: Path, kind: str, schedule: str, fits: bool) -> None:
    content = _changed(scheduler={"type": kind, "params": {}})
    problems = _file(tmp_path, content, replace(RECIPE, schedule=schedule))[1]
    assert list(problems) == ([] if fits else ["scheduler.type"])


def test_unknown_types_and_disagreeing_optimizer(tmp_path: Path) -> None:
    assert "AdamW" in _file(tmp_path, _changed(optimizer__type="AdamWW"))[1]["optimizer.type"].fix
    assert "WarmupLR" in _file(tmp_path, _changed(scheduler__type="WarmupLRR"))[1]["scheduler.type"].fix
    assert "adamw" in _file(tmp_path, _changed(optimizer__type="Lion"))[1]["optimizer.type"].why
    assert not _file(tmp_path, _changed(optimizer__type="Adam"))[1]  # DeepSpeed's Adam is AdamW unless told otherwise


@pytest.mark.parametrize(
    ("target", "stage", "offload", "refused"),
    [
        ("trireme.trainer.optimizers.adafactor", 2, "none", True),
        ("trireme.trainer.optimizers.adafactor", 0, "none", False),
        ("trireme.trainer.optimizers.adamw_8bit", 2, "cpu", True),
        ("trireme.trainer.optimizers.sgd", 3, "none", False),
        ("trireme.trainer.optimizers.sgd", 2, "cpu", False),
        ("trireme.trainer.optimizers.lion", 2, "cpu", False),
        ("some.package.Unheard", 1, "none", True),
        ("some.package.Unheard", 0, "none", False),
    ],
)
def test_optimizers_that_zero_can_step(target: str, stage: Any, offload: Any, refused: bool) -> None:
    recipe = replace(RECIPE, optimizer={"_target_": target, "lr": 0.1})
    _, problems = _typed(recipe, stage=stage, offload_optimizer=OffloadOptimizer(offload))
    assert [problem.field for problem in problems] == (["optimizer"] if refused else [])


def test_switches_about_foreign_optimizers() -> None:
    sgd = replace(RECIPE, optimizer={"_target_": "trireme.trainer.optimizers.sgd", "lr": 0.1})
    config, _ = _typed(sgd, stage=2, offload_optimizer=OffloadOptimizer("cpu"))
    assert config["zero_allow_untested_optimizer"] is True and config["zero_force_ds_cpu_optimizer"] is False
    config, _ = _typed(stage=2, offload_optimizer=OffloadOptimizer("cpu"))
    assert config["zero_allow_untested_optimizer"] is False and config["zero_force_ds_cpu_optimizer"] is True
    _, problems = _typed(sgd, stage=2, zero_allow_untested_optimizer=False)
    assert [problem.field for problem in problems] == ["plan.deepspeed.zero_allow_untested_optimizer"]


# -- before launch -----------------------------------------------------------------------------------------------


def test_options_refuse_all_contradictions_at_once() -> None:
    with pytest.raises(ValueError) as error:
        DeepSpeedOptions(
            stage=0, offload_optimizer=OffloadOptimizer("cpu"), offload_param=OffloadParam("cpu"), reduce_bucket_size=0
        )
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert [line.split("=")[0] for line in lines] == [
        "reduce_bucket_size",
        "offload_optimizer.device",
        "offload_param.device",
    ]
    with pytest.raises(ValueError, match="nvme_path=null"):
        OffloadParam("nvme")
    with pytest.raises(ValueError, match="needs stage 3"):
        DeepSpeedOptions(stage=2, offload_optimizer=OffloadOptimizer("nvme", "/tmp"))


def test_check_reports_disk_and_average_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = DeepSpeedOptions(stage=3, offload_param=OffloadParam("nvme", str(tmp_path / "file" / "below")))
    plan = Plan(shard="auto", data_parallel="deepspeed", deepspeed=options)
    fields = [problem.field for problem in check_deepspeed(plan, replace(RECIPE, ema=True), 2)]
    disk = ["plan.deepspeed.offload_param.nvme_path"]
    assert fields == ["ema", *disk] + ([] if aio_compatible() else ["plan.deepspeed.offload_param.device"])
    assert check_deepspeed(Plan(), replace(RECIPE, ema=True), 1) == []


def test_steps_that_are_not_known_yet_are_filled_later(tmp_path: Path) -> None:
    config, problems = _file(tmp_path, PUBLISHED, replace(RECIPE, max_steps=None, warmup_steps=None))
    assert not problems
    assert config["scheduler"]["params"]["total_num_steps"] == "auto"


def test_each_environment_builds_operators_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the same in every process of an environment; another version or path has another folder."""
    import deepspeed
    import torch
    from torch.utils.cpp_extension import get_default_build_root

    folder = own_folder()
    assert own_folder() == folder and folder.parent == Path(get_default_build_root())
    found = {folder}
    for module, name, value in (
        (torch, "__version__", "9.9"),
        (deepspeed, "__version__", "9.9"),
        (deepspeed, "__file__", "/elsewhere/deepspeed/__init__.py"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            found.add(own_folder())
    assert len(found) == 4


@pytest.mark.parametrize("named", [True, False])
def test_a_folder_for_operators_that_is_named_is_kept(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trireme.parallel.zero.operators.current_accelerator", lambda: NoBuilder)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    if not named:
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    load_operator("CPUAdamBuilder")
    assert os.environ["TORCH_EXTENSIONS_DIR"] == str(tmp_path if named else own_folder())


def test_a_compiled_operator_is_loaded_without_its_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled library is used if its build has ended, and neither it nor what it was made for has changed."""
    from deepspeed.ops.op_builder import CPUAdamBuilder  # type: ignore[attr-defined]

    load_operator("CPUAdamBuilder")
    built = Path(os.environ["TORCH_EXTENSIONS_DIR"]) / "cpu_adam"
    shutil.copytree(built, tmp_path / "cpu_adam", ignore=shutil.ignore_patterns("*.o", "*.compiled"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    loaded, asked = dict(CPUAdamBuilder._loaded_ops), []
    monkeypatch.setattr(CPUAdamBuilder, "load", lambda self, verbose: asked.append(self.name))
    for changed in (None, "library", "compiler"):
        if changed == "library":
            os.utime(tmp_path / "cpu_adam" / "cpu_adam.so")
        if changed == "compiler":
            monkeypatch.setenv("CXX", "another-g++")
        CPUAdamBuilder._loaded_ops.pop("cpu_adam", None)
        load_operator("CPUAdamBuilder")  # asks the builder: nothing says that the library is finished
        load_operator("CPUAdamBuilder")
        assert CPUAdamBuilder._loaded_ops["cpu_adam"].adam_update
    assert asked == ["cpu_adam"] * 3
    CPUAdamBuilder._loaded_ops.update(loaded)


class NoBuilder:
    @staticmethod
    def create_op_builder(name: str) -> None:
        return None


def test_a_build_lock_that_a_killed_rank_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would wait for the lock forever."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.write_text("")
    long_ago = time.time() - 2 * PATIENCE
    os.utime(lock, (long_ago, long_ago))
    with one_at_a_time("cpu_adam"):
        assert not lock.exists()
