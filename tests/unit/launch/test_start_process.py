"""Tests of the environment variables that are set before torch is imported, so that idle threads of OpenMP soon sleep.
A value that the user has set is kept.
"""

from __future__ import annotations

import os

import pytest
from trireme.launch.start_process import SPINS, prepare_process


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # so that the old value, or none, comes back after the test
        monkeypatch.delenv(name)


def test_threads_look_for_work_a_short_time_before_they_sleep() -> None:
    prepare_process()
    assert os.environ["GOMP_SPINCOUNT"] == SPINS
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # for other libraries of OpenMP than torch's


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "7")])
def test_what_the_user_chose_about_waiting_threads_counts(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    prepare_process()
    assert os.environ[name] == value
    assert os.environ.get("GOMP_SPINCOUNT") != SPINS
