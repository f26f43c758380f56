"""Tests that two runs never write into the same folder: the second is refused while the first process lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trireme.errors import UserError
from trireme.trainer.run_lock import RunLock

HOLD = """
import sys, time
from pathlib import Path
from trireme.trainer.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(100)
"""


def test_a_folder_is_held_as_long_as_its_process_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    lock = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"is in use by process {holder.pid} on"):
        lock.take()
    holder.kill()
    holder.wait()
    lock.take()
    lock.release()


def test_a_folder_that_cannot_be_written_is_for_others_to_report(tmp_path: Path) -> None:
    RunLock(tmp_path / "missing").take()
