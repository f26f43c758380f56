"""Tests that two confusing messages are hidden in notebooks: linker errors while DeepSpeed looks for libraries, and
tqdm's warning about ipywidgets. Other messages are still shown.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings

import pytest
from trireme.launch.start_process import prepare_process
from trireme.parallel.zero.library import no_linker_errors


def test_a_linker_is_not_heard_in_a_notebook(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook, ``sys.stderr`` is not the file that programs write to."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with no_linker_errors():
        subprocess.run(["sh", "-c", "echo cannot find -laio >&2"], check=True)
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_an_ordinary_process_keeps_its_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with open(2, "w", closefd=False) as ordinary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", ordinary)
        with no_linker_errors():
            os.write(2, b"said\n")
    assert capfd.readouterr().err == "said\n"


def test_tqdm_does_not_ask_for_ipywidgets() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        prepare_process()
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["something else"]
