"""Tests of reported throughput: rates leave out pauses, memory is measured, and MFU uses the hardware's peak FLOP/s."""

from __future__ import annotations

import time

import pytest
import torch
from trireme.parallel.plan import Plan
from trireme.trainer.callbacks.throughput import Throughput, gpu_peak_flops, measure_cpu_flops, memory_mib


def step(run, callback, seconds, *, log):
    run.control.log = log
    time.sleep(seconds)
    run.state.step += 1
    run.state.samples += 8
    run.state.tokens += 1000
    run.fire("on_step_end", callback)


def test_rates_are_those_of_the_training_clock(run):
    run.trainer.flops_per_token = 1e6
    run.trainer.mesh.world_size = 2
    callback = Throughput(peak_flops=1e12)
    run.fire("on_train_begin", callback)
    run.trainer.clock.restart(run.state)
    with run.trainer.clock.paused():
        time.sleep(1)
    for last in (False, True):
        step(run, callback, 0.05, log=last)
    metrics = run.trainer.extra_metrics
    assert 0.05 <= metrics["step_seconds"] < 0.5, "a pause of 1 s was counted"
    assert metrics["samples_per_second"] == pytest.approx(8 / metrics["step_seconds"])
    assert metrics["mfu"] == pytest.approx(1e6 * 1000 / metrics["step_seconds"] / 2e12)


def test_steps_without_a_log_line_get_no_metrics(run):
    callback = Throughput()
    run.fire("on_train_begin", callback)
    step(run, callback, 0.0, log=False)
    assert run.trainer.extra_metrics == {}


def test_no_mfu_without_a_count_of_operations(run):
    callback = Throughput()
    run.fire("on_train_begin", callback)
    step(run, callback, 0.0, log=True)
    assert set(run.trainer.extra_metrics) == {"samples_per_second", "step_seconds", "memory_mib"}


def test_memory_can_be_left_out(run):
    callback = Throughput(memory=False)
    run.fire("on_train_begin", callback)
    step(run, callback, 0.0, log=True)
    assert set(run.trainer.extra_metrics) == {"samples_per_second", "step_seconds"}


@pytest.mark.parametrize(
    ("name", "plan", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", Plan(precision="bf16"), 312),
        ("NVIDIA A100-SXM4-80GB", Plan(tf32=True), 156),
        ("NVIDIA A100-SXM4-80GB", Plan(), 19.5),
        ("NVIDIA H100 80GB HBM3", Plan(precision="bf16"), 989),
        ("NVIDIA H100 PCIe", Plan(precision="bf16"), 756),
        ("NVIDIA H200", Plan(precision="fp16"), 989),
        ("NVIDIA A10G", Plan(precision="bf16"), 70),
        ("NVIDIA L40S", Plan(), 91.6),
        ("NVIDIA RTX 6000 Ada Generation", Plan(precision="bf16"), 364),
        ("NVIDIA RTX A1000", Plan(), None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", Plan(), None),
    ],
)
def test_gpu_table(name, plan, tflops):
    assert gpu_peak_flops(name, plan) == (None if tflops is None else pytest.approx(tflops * 1e12))


def test_cpu_peak_is_quick_and_draws_no_random_number():
    before = torch.get_rng_state()
    started = time.perf_counter()
    assert measure_cpu_flops(torch.float32) > 1e8
    assert time.perf_counter() - started < 1.0
    assert torch.equal(before, torch.get_rng_state())


def test_memory_grows_by_the_size_of_a_new_tensor():
    before = memory_mib(torch.device("cpu"))
    held = torch.ones(64 * 2**20 // 4)
    assert 50 < memory_mib(torch.device("cpu")) - before < 100
    assert held.numel()


def test_wrong_peak_is_named():
    with pytest.raises(ValueError, match="peak_flops=-1"):
        Throughput(peak_flops=-1)
