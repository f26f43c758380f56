"""Who speaks on the terminal, with which prefix, and what is kept in files."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from helpers.command import command, tiny_command
from helpers.running import run_to_end

TESTS = Path(__file__).parents[1]
SPEAKS = "+callbacks.speaks={_target_: helpers.callbacks.Speaks}"


def started(run_dir: Path, *overrides: str) -> str:
    """What two ranks under torchrun, which lets all of them write to the terminal, say there."""
    own = tiny_command(run_dir, "trainer.max_steps=1", "plan=ddp", "trainer.eval_at_end=false", SPEAKS, *overrides)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = run_to_end(
        [*launcher, "-m", "trireme.launch.train", *own[len(command("train")) :]],
        run_dir,
        {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def spoken(said: str) -> list[str]:
    return sorted(line for line in said.splitlines() if re.search(r"(info|warning) of \d$", line))


def test_rank_0_speaks_and_others_warn_with_their_rank(tmp_path: Path) -> None:
    assert spoken(started(tmp_path)) == ["[rank 1] warning of 1", "info of 0", "warning of 0"]
    assert "info of 1" in (tmp_path / "logs" / "rank1.log").read_text(), "files keep what the terminal does not show"
    assert "info of 0" in (tmp_path / "log.txt").read_text()


@pytest.mark.long
def test_when_several_speak_every_line_carries_its_rank(tmp_path: Path) -> None:
    said = spoken(started(tmp_path, "run.log_level=warning", "run.log_level_replica=info"))
    assert said == ["[rank 0] warning of 0", "[rank 1] info of 1", "[rank 1] warning of 1"]
    assert "info of 0" in (tmp_path / "log.txt").read_text()
