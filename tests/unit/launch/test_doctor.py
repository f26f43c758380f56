"""``trireme doctor`` reports hardware, libraries and usable parallelism plans, and how to install what is missing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.command import command, trireme, trireme_here
from trireme.parallel.usable_cores import usable_cores

PLANS = {path.stem for path in (Path(__file__).parents[3] / "configs" / "plan").glob("*.yaml")}


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], dict]:
    result = trireme("doctor", "--json")
    assert result.returncode == 0, result.stderr
    assert not result.stderr, "a library chatters"
    return {(finding["about"], finding["name"]): finding for finding in json.loads(result.stdout)}


def test_versions_cores_and_backends_are_those_of_this_machine(found: dict) -> None:
    assert found["software", "torch"]["found"] == torch.__version__
    assert found["processor", "cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} of ")
    assert found["backend", "gloo"]["state"] == "ok"
    there = torch.distributed.is_nccl_available()
    assert (found["backend", "nccl"]["state"] == "ok") is there
    if not torch.cuda.is_available():
        assert found["accelerator", "GPU"]["state"] in ("note", "missing")


def test_every_plan_is_listed_with_its_processes(found: dict) -> None:
    assert {name for about, name in found if about == "plan"} == PLANS
    assert found["plan", "single"]["found"] == "1 process"
    assert found["plan", "3d"]["found"] == "a multiple of 4 processes"


def test_what_is_missing_comes_with_a_fix(tmp_path: Path) -> None:
    """Without a compiler, DeepSpeed's plans are reported as missing, and other plans as usable."""
    environment = {**os.environ, "CXX": "no-such-compiler", "PATH": str(tmp_path)}
    result = subprocess.run(command("doctor", "--json"), capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    found = {(f["about"], f["name"]): f for f in json.loads(result.stdout)}
    assert found["compiler", "no-such-compiler"]["state"] == "note" and found["compiler", "no-such-compiler"]["fix"]
    assert found["plan", "zero2"]["state"] == "missing" and "no-such-compiler" in found["plan", "zero2"]["fix"]
    assert found["plan", "ddp"]["state"] == "ok"
    assert found["launcher", "sbatch"]["found"] == "not found"


def test_without_json_tables_are_printed(found: dict, capsys: pytest.CaptureFixture[str]) -> None:
    said = trireme_here(capsys, "doctor").stdout
    assert all(word in said for word in ("software", "accelerator", "launcher", "zero3_nvme"))


def test_cores_are_counted_where_the_system_does_not_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert usable_cores() == list(range(os.cpu_count() or 1))
