"""A configuration file of accelerate is translated into a recipe's parallelism plan and options, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import trireme_here
from helpers.recipes import TINY
from trireme.errors import UserError
from trireme.launch.accelerate import not_here, settings_of_file, settings_of_launcher, take_gpus, with_choices

FSDP1 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 1
  fsdp_sharding_strategy: {strategy}
  fsdp_auto_wrap_policy: SIZE_BASED_WRAP
  fsdp_min_num_params: 2000
  fsdp_backward_prefetch: BACKWARD_PRE
  fsdp_forward_prefetch: true
  fsdp_offload_params: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
mixed_precision: 'no'
num_machines: 1
num_processes: 4
"""
FSDP2 = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: {reshard}
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_activation_checkpointing: true
mixed_precision: bf16
num_machines: 1
num_processes: 2
"""
DEEPSPEED = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config:
  zero_stage: 3
  offload_optimizer_device: nvme
  offload_optimizer_nvme_path: /fast
  offload_param_device: cpu
  zero3_init_flag: true
mixed_precision: fp16
num_machines: 1
num_processes: 8
"""


def chosen(folder: Path, text: str, *overrides: str) -> tuple[list[str], int]:
    (folder / "accelerate.yaml").write_text(text)
    settings, processes = settings_of_file(str(folder / "accelerate.yaml"))
    return with_choices(overrides, settings), processes


@pytest.mark.parametrize(
    ("strategy", "plan"),
    [("FULL_SHARD", "fsdp_full_shard"), ("2", "fsdp_shard_grad_op"), ("HYBRID_SHARD_ZERO2", "fsdp_hybrid_shard_zero2")],
)
def test_fsdp1_strategies_are_plans(strategy: str, plan: str, tmp_path: Path) -> None:
    overrides, processes = chosen(tmp_path, FSDP1.format(strategy=strategy), "optimizer.lr=1")
    assert processes == 4
    assert overrides == [
        f"plan={plan}", "plan.fsdp.offload=true", "plan.fsdp.forward_prefetch=1", "plan.fsdp.min_num_params=2000",
        "optimizer.lr=1",
    ]  # fmt: skip


@pytest.mark.parametrize(("reshard", "plan"), [("true", "fsdp_full_shard"), ("false", "fsdp_shard_grad_op")])
def test_fsdp2_options_become_the_plans(reshard: str, plan: str, tmp_path: Path) -> None:
    overrides, _ = chosen(tmp_path, FSDP2.format(reshard=reshard))
    assert overrides == [
        f"plan={plan}", "plan.recompute=full", "plan.fsdp.transformer_layer_cls_to_wrap=[LlamaDecoderLayer]",
        "plan.precision=bf16",
    ]  # fmt: skip


def test_deepspeed_fields_become_the_plans(tmp_path: Path) -> None:
    overrides, processes = chosen(tmp_path, DEEPSPEED)
    assert processes == 8
    assert overrides == [
        "plan=zero3", "plan.deepspeed.offload_optimizer.device=nvme",
        "plan.deepspeed.offload_optimizer.nvme_path=/fast", "plan.deepspeed.offload_param.device=cpu",
        "plan.precision=fp16",
    ]  # fmt: skip


def test_a_deepspeed_file_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    text = f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {file}}}\n"
    overrides, _ = chosen(tmp_path, f"compute_environment: LOCAL_MACHINE\nnum_processes: 2\nnum_machines: 1\n{text}")
    assert overrides == ["plan=zero1", f"plan.deepspeed={file}"]


def test_the_same_choice_twice_is_no_contradiction_and_another_is_refused(tmp_path: Path) -> None:
    overrides, _ = chosen(tmp_path, FSDP2.format(reshard="true"), "plan=fsdp_full_shard", "+plan.recompute=full")
    assert overrides[-2:] == ["plan=fsdp_full_shard", "+plan.recompute=full"] and overrides.count(overrides[-2]) == 1
    with pytest.raises(UserError) as refusal:
        chosen(tmp_path, FSDP2.format(reshard="true"), "plan=ddp", "plan.precision=fp32")
    assert "plan" in str(refusal.value) and "says fsdp_full_shard" in str(refusal.value)
    assert len(refusal.value.problems) == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"}, "dynamo_backend"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_SHARDING_STRATEGY": "SOME"}, "fsdp_sharding_strategy"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_IGNORED_MODULES": "head"}, "fsdp_ignored_modules"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}, "fsdp_auto_wrap_policy"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"}, "dynamo_mode"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}, "parallelism_config_cp"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "no.json"}, "deepspeed_config_file"),
    ],
)
def test_what_has_no_counterpart_is_refused(settings: dict[str, str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        with_choices([], settings)


def test_degrees_of_a_parallelism_config() -> None:
    settings = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
    settings |= {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "4", "PARALLELISM_CONFIG_TP_SIZE": "2"}
    assert with_choices([], settings) == ["plan=fsdp_full_shard", "plan.replicate=1", "plan.shard=4", "plan.tensor=2"]


def test_other_launchers_give_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert settings_of_launcher() == {} and with_choices(["a=1"], {}) == ["a=1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compute_environment: LOCAL_MACHINE\ndistributed_tipe: FSDP\n", "cannot read it"),
        ("", "cannot read it"),
        ("- a\n- b\n", "cannot read it"),
        ("a: [\n", "cannot read it"),
        ("compute_environment: AMAZON_SAGEMAKER\n", "cannot read it"),
        (FSDP2.format(reshard="true").replace("bf16", "fp8"), "mixed_precision"),
        ("compute_environment: LOCAL_MACHINE\nnum_processes: two\n", "num_processes = 'two'\n  is not a whole number"),
        ("compute_environment: LOCAL_MACHINE\nuse_cpu: 1\n", "use_cpu = 1\n  is not true or false"),
        (FSDP2.format(reshard="FULL_SHARD"), "fsdp_reshard_after_forward"),
        (FSDP1.replace("sharding", "shardding").format(strategy="2"), "did you mean fsdp_sharding_strategy"),
        (DEEPSPEED.replace("zero_stage", "zero_stages"), "did you mean zero_stage"),
    ],
)
def test_bad_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        chosen(tmp_path, text)


PUBLISHED = """
compute_environment: LOCAL_MACHINE
{section}
downcast_bf16: 'no'
machine_rank: 0
main_process_ip:
main_training_function: main
mixed_precision: {precision}
num_machines: 1
num_processes: 4
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""
"""Configuration files in the form that the documentation of transformers shows."""
DDP = "distributed_type: MULTI_GPU\ngpu_ids: all\nmain_process_port: 9898"
OLD_FSDP = """distributed_type: FSDP
fsdp_config:
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_backward_prefetch_policy: {prefetch}
  fsdp_sharding_strategy: 1
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_sync_module_states: true
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
  fsdp_use_orig_params: true"""
PLUGIN = """deepspeed_config:
  gradient_accumulation_steps: 1
  gradient_clipping: 0.7
  offload_optimizer_device: cpu
  offload_param_device: cpu
  zero3_init_flag: true
  zero_stage: 2
distributed_type: DEEPSPEED"""


def test_published_fsdp_under_its_old_names(tmp_path: Path) -> None:
    published = PUBLISHED.format(section=OLD_FSDP.format(prefetch="BACKWARD_PRE"), precision="bf16")
    overrides, _ = chosen(tmp_path, published)
    assert overrides[0] == "plan=fsdp_full_shard" and "plan.precision=bf16" in overrides
    other = PUBLISHED.format(section=OLD_FSDP.format(prefetch="BACKWARD_POST"), precision="bf16")
    assert "plan.fsdp.backward_prefetch=backward_post" in chosen(tmp_path, other)[0], "the value is kept"


def test_published_plugin_leaves_out_what_its_stage_ignores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = PUBLISHED.format(section=PLUGIN, precision="bf16")
    overrides, _ = chosen(tmp_path, published)
    assert overrides == [
        "plan=zero2", "plan.deepspeed.offload_optimizer.device=cpu", "trainer.max_grad_norm=0.7", "plan.precision=bf16",
    ]  # fmt: skip
    assert "offload_param_device: cpu does nothing with zero_stage: 2" in capsys.readouterr().err
    assert "plan.deepspeed.offload_param.device=cpu" in chosen(tmp_path, published.replace("_stage: 2", "_stage: 3"))[0]
    assert chosen(tmp_path, published, "trainer.max_grad_norm=0.70")[0][-1] == "trainer.max_grad_norm=0.70"
    with pytest.raises(UserError, match=r"says 0\.7"):
        chosen(tmp_path, published, "trainer.max_grad_norm=1.0")


def test_several_processes_without_an_engine_are_ddp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ddp.yaml").write_text(PUBLISHED.format(section=DDP, precision="fp16"))
    given = ("check", str(TINY), "--accelerate-config", str(tmp_path / "ddp.yaml"))
    assert "plan   ddp, 4 processes, fp16" in trireme_here(capsys, *given).stdout
    assert "plan   fsdp_full_shard, 4" in trireme_here(capsys, *given, "plan=fsdp_full_shard").stdout
    one = PUBLISHED.format(section=DDP, precision="fp16").replace("processes: 4", "processes: 1")
    (tmp_path / "one.yaml").write_text(one.replace("MULTI_GPU", "'NO'"))
    given = ("check", str(TINY), "--accelerate-config", str(tmp_path / "one.yaml"))
    assert "plan   single, 1 process" in trireme_here(capsys, *given).stdout


def test_accelerate_launch_on_the_cpu_says_that_it_starts_one_rank(tmp_path: Path) -> None:
    """It starts one process without a rank, whatever ``--num_processes`` says."""
    program = f"from trireme.launch.cli import main; main(['check', {str(TINY)!r}])"
    (tmp_path / "script.py").write_text(program)
    launcher = Path(sys.executable).parent / "accelerate"
    result = subprocess.run(
        [sys.executable, str(launcher), "launch", "--cpu", "--num_processes", "2", str(tmp_path / "script.py")],
        capture_output=True, text=True, env=dict(os.environ), timeout=200,
    )  # fmt: skip
    assert "single, 1 process" in result.stdout, result.stderr
    assert "starts one process on the CPU, though 2 were asked for" in result.stderr


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        settings_of_file(str(tmp_path / "none.yaml"))


def test_several_machines_are_not_started_here(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(DEEPSPEED)
    assert not_here(settings_of_file(str(tmp_path / "one.yaml"))[0]) == []
    hosts = DEEPSPEED.replace("zero_stage", "deepspeed_hostfile: /etc/hosts\n  zero_stage").replace(
        "machines: 1", "machines: 2"
    )
    (tmp_path / "two.yaml").write_text(hosts)
    problems = not_here(settings_of_file(str(tmp_path / "two.yaml"))[0])
    assert [problem.field for problem in problems] == ["num_machines", "deepspeed_hostfile"]


def test_gpu_ids_are_those_that_ranks_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as it was, afterwards
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "gpus.yaml").write_text(DEEPSPEED + "gpu_ids: 2,3\n")
    settings = settings_of_file(str(tmp_path / "gpus.yaml"))[0]
    take_gpus(settings)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="says gpu_ids: 2,3"):
        take_gpus(settings)


def test_cpu_affinity_binds_cores(tmp_path: Path) -> None:
    assert "run.bind_cores=true" in chosen(tmp_path, FSDP2.format(reshard="true") + "enable_cpu_affinity: true\n")[0]
