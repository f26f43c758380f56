"""The signal that killed a forked rank is recorded, even when another process waits for that rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from helpers.running import until
from trireme.launch.rank_exits import RankExits


def started(folder: Path, rank: int, code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code])
    (folder / f"rank{rank}.pid").write_text(str(process.pid))
    return process


def test_signals_are_noted_and_exits_are_not(tmp_path: Path) -> None:
    with RankExits(str(tmp_path)) as exits:
        waits, fails = started(tmp_path, 1, "import time; time.sleep(60)"), started(tmp_path, 0, "raise SystemExit(1)")
        (tmp_path / "rank2.pid").write_text("")  # about to be written
        os.kill(waits.pid, signal.SIGKILL)
        until(lambda: bool(exits.signals), 20)
        assert waits.wait() == -signal.SIGKILL and fails.wait() == 1, "both are still there to be collected"
    assert exits.signals == {1: signal.SIGKILL}
