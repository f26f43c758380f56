"""The faults that ``benchmarks/faults.py`` injects into training runs: kills, damaged checkpoints, full disks and
read-only folders. ``Start`` is one start of a run's command.

A fault observes the command only from outside, through its processes and files. It strikes while the command starts, in
a random step, or during a save. After the command has ended, a full disk is freed and a read-only folder is made
writable again, as an administrator would do.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from trireme.trainer.checkpoint.layout import complete_checkpoints

MARK = "damaged_by_the_campaign"
"""File that marks a damaged checkpoint; writing the checkpoint again replaces the folder and with it the mark."""
POLL_SECONDS = 0.003


@dataclass
class Start:
    """One running command of a trial."""

    process: psutil.Popen
    run_dir: Path
    random: random.Random
    last_step: int
    """Steps of the whole run."""
    save_every: int
    seconds_to_start: float
    """Until the first step of the undisturbed run."""

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def lines(self) -> int:
        """Lines of metrics written so far, of this start and those before."""
        try:
            return (self.run_dir / "metrics.jsonl").read_bytes().count(b"\n")
        except OSError:
            return 0

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait until ``ready`` is true; returns False if the command ended first."""
        while self.process.poll() is None:
            if ready():
                return True
            time.sleep(POLL_SECONDS)
        return False

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        return self.wait_until(lambda: time.monotonic() >= end)

    def kill(self, processes: list[psutil.Process]) -> bool:
        """Send SIGKILL; returns whether one of the processes was still alive."""
        hit = False
        for process in processes:
            try:
                process.kill()
                hit = True
            except psutil.NoSuchProcess:
                pass
        return hit

    def everyone(self) -> list[psutil.Process]:
        """Processes of the command: itself, then its ranks."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return [self.process]

    def ranks(self) -> list[psutil.Process]:
        """Processes that train; the command itself if it is the only one."""
        everyone = self.everyone()
        return everyone[1:] or everyone


# -- moments: wait for one, False when the command ended before -------------------------------------------------------


def any_moment(start: Start) -> bool:
    """Wait for a random moment: during the start of the command (one time in four), or in a random step."""
    if start.random.random() < 0.25:
        return start.wait(start.random.uniform(0, start.seconds_to_start))
    return in_a_step(start)


def in_a_step(start: Start) -> bool:
    step = start.random.randint(start.lines() + 1, max(start.lines() + 1, start.last_step - 1))
    return start.wait_until(lambda: start.lines() >= step) and start.wait(start.random.uniform(0, 0.03))


def in_a_save(start: Start) -> bool:
    """Wait for a checkpoint that is half written, under its hidden name."""
    step = start.random.randint(start.lines(), max(start.lines(), start.last_step - start.save_every))
    if not start.wait_until(lambda: start.lines() >= step):
        return False
    hidden = lambda: next(start.checkpoints.glob(".step_*.partial"), None) is not None  # noqa: E731
    return start.wait_until(hidden) and start.wait(start.random.uniform(0, 0.04))


def two_checkpoints(start: Start) -> bool:
    """Wait for a random step after two complete checkpoints, so that one of them may be damaged."""
    return start.wait_until(lambda: len(undamaged(start.checkpoints)) >= 2) and in_a_step(start)


# -- faults: True when the harm was done ------------------------------------------------------------------------------


def kill_one_rank(start: Start) -> bool:
    return any_moment(start) and start.kill([start.random.choice(start.ranks())])


def kill_all(start: Start) -> bool:
    return any_moment(start) and start.kill(start.everyone())


def kill_in_a_save(start: Start) -> bool:
    if not in_a_save(start):
        return False
    return start.kill(start.everyone() if start.random.random() < 0.5 else [start.random.choice(start.ranks())])


def damaging(harm: Callable[[Path, random.Random], None]) -> Callable[[Start], bool]:
    """Kill the command, then do ``harm`` to its newest checkpoint, unless that is the only good one."""

    def fault(start: Start) -> bool:
        if not two_checkpoints(start):
            return False
        everyone = start.everyone()
        start.kill(everyone)
        psutil.wait_procs(everyone, timeout=30)
        good = undamaged(start.checkpoints)
        if len(good) < 2:
            return False
        (good[0] / MARK).touch()
        harm(good[0], start.random)
        return True

    return fault


def truncate_file(checkpoint: Path, chance: random.Random) -> None:
    file = some_file(checkpoint, chance)
    os.truncate(file, chance.randrange(file.stat().st_size))


def flip_bytes(checkpoint: Path, chance: random.Random) -> None:
    file = some_file(checkpoint, chance)
    data = bytearray(file.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] ^= chance.randint(1, 255)
    file.write_bytes(data)


def delete_file(checkpoint: Path, chance: random.Random) -> None:
    some_file(checkpoint, chance).unlink()


def remove_checkpoint(checkpoint: Path, chance: random.Random) -> None:
    subprocess.run(["rm", "-r", str(checkpoint)], check=True)


def fill_disk(start: Start) -> bool:
    """Fill the trial's small disk: nothing more fits, or only a random part of the next checkpoint."""
    if not any_moment(start):
        return False
    disk, filler = start.run_dir.parent, start.run_dir.parent / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    left = start.random.choice((0, start.random.randrange(4 * 2**20)))
    with contextlib.suppress(OSError):  # the run took the rest
        filler.write_bytes(bytes(max(free - left, 0)))
    return True


def free_disk(run_dir: Path) -> None:
    (run_dir.parent / "filler").unlink(missing_ok=True)


def make_read_only(start: Start) -> bool:
    """Mount the folder over itself, read-only, since mode bits do not stop root."""
    if not any_moment(start) or not start.wait_until(start.run_dir.is_dir):
        return False
    return mount_read_only(start.random.choice([path for path in (start.checkpoints, start.run_dir) if path.is_dir()]))


def mount_read_only(folder: Path) -> bool:
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True, capture_output=True)
    remount = ["mount", "-o", "remount,ro,bind", str(folder)]
    return subprocess.run(remount, check=True, capture_output=True).returncode == 0


def make_writable(run_dir: Path) -> None:
    """Undo ``make_read_only``. The unmount is simply tried: ``ismount`` does not see a folder mounted over itself."""
    for folder in (run_dir / "checkpoints", run_dir):
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


def nothing(run_dir: Path) -> None:
    pass


@dataclass(frozen=True)
class Fault:
    """A kind of fault."""

    strike: Callable[[Start], bool]
    undo: Callable[[Path], None] = field(default=nothing)
    """The repair once the command has ended, such as freeing the disk; its argument is the run folder."""
    mounts: bool = False
    """Needs to mount file systems."""


FAULTS = {
    "kill one rank": Fault(kill_one_rank),
    "kill all": Fault(kill_all),
    "kill inside a save": Fault(kill_in_a_save),
    "truncate a file": Fault(damaging(truncate_file)),
    "flip bytes": Fault(damaging(flip_bytes)),
    "delete a file": Fault(damaging(delete_file)),
    "remove the newest": Fault(damaging(remove_checkpoint)),
    "full disk": Fault(fill_disk, free_disk, mounts=True),
    "read-only folder": Fault(make_read_only, make_writable, mounts=True),
}


def undamaged(checkpoints: Path) -> list[Path]:
    """Complete checkpoints that no fault has touched, newest first."""
    return [folder for folder in complete_checkpoints(checkpoints) if not (folder / MARK).exists()]


def some_file(checkpoint: Path, chance: random.Random) -> Path:
    """Choose a random file that is not empty; it may be the manifest."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size > 0)
    return chance.choice(files)


def can_mount(folder: Path) -> str | None:
    """The reason why small file systems cannot be mounted in ``folder``; None if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if tried.returncode:
        return tried.stderr.decode().strip()
    subprocess.run(["umount", str(folder)], check=True)
    return None
