"""Inject random faults into short training runs, and count how many finish when the same command is started again.

A trial draws one to three faults: kills (also during a save), damage to the newest checkpoint, a full disk, or a
read-only folder. Each fault strikes one start of the command. Then the command is started until it finishes. A trial
counts as recovered if it needs no other help, never loads a damaged checkpoint, and ends bit for bit with the weights,
optimizer state, progress and loss curve of an undisturbed run. One good checkpoint is always left. If all were damaged,
the run would rightly refuse to overwrite them.

    python benchmarks/faults.py                                  # 100 trials of ddp on two ranks
    python benchmarks/faults.py --trials 20 --plan zero2 --seed 7
    python benchmarks/faults.py --trials 1 --seed 49             # repeats trial 49 of a campaign whose seed was 0
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import psutil
import torch
from fault_kinds import FAULTS, MARK, Start, can_mount, make_writable
from helpers.command import tiny_command
from helpers.metrics import training
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from trireme.trainer.checkpoint.layout import STATE, complete_checkpoints, step_folder, verify
from trireme.trainer.checkpoint.load.own_checkpoint import Checkpoint

STEPS, SAVE_EVERY = 60, 4
STARTS_AFTER = 3
"""Attempts of the same command after the last fault before its run counts as lost."""
LONGEST_SECONDS = 300.0
"""Seconds after which a start counts as hanging."""
DISK = "24m"
"""Room for three checkpoints of 3.2 MiB, one more that is being written, and logs."""
BUILD = Path(__file__).parents[1] / "build"
RESULTS = "faults.json"


@dataclass
class Trial:
    """The faults, starts and outcome of one run."""

    seed: int
    faults: list[str]
    struck: list[bool] = field(default_factory=list)
    """False where the command had ended before the fault's moment."""
    codes: list[int] = field(default_factory=list)
    """Exit code of each start."""
    last_lines: list[str] = field(default_factory=list)
    """The last line that each start wrote."""
    steps_again: int = 0
    """Steps that were trained more than once."""
    seconds: float = 0.0
    """Duration of all starts together."""
    lost: str = ""
    """The reason why the run was not recovered; empty if it was."""


@dataclass
class Campaign:
    """Settings that all trials share."""

    folder: Path
    overrides: list[str]
    kinds: list[str]
    """Kinds of faults that can be injected on this machine."""
    mounts: bool
    out: Path
    """Gets results, and the folders of failed trials."""
    reference: Path
    seconds: float = 0.0
    """Seconds that the undisturbed run takes."""
    seconds_to_start: float = 0.0


def prepare(folder: Path, overrides: list[str], kinds: list[str], mounts: bool, out: Path) -> Campaign:
    """Train the undisturbed run, which also prepares the data for all others."""
    for _ in range(2):  # the second is timed
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        campaign = Campaign(folder, overrides, kinds, mounts, out, folder / "undisturbed")
        began, output = time.monotonic(), folder / "undisturbed.txt"
        code = start(campaign, campaign.reference, output, random.Random(0)).process.wait()
        if code:
            raise SystemExit(f"the undisturbed run failed:\n{output.read_text()}")
        campaign.seconds = time.monotonic() - began
    campaign.seconds_to_start = float(re.findall(r"first step begins ([\d.]+) s", output.read_text())[-1])
    return campaign


def start(campaign: Campaign, run_dir: Path, output: Path, chance: random.Random) -> Start:
    """Start the command of the campaign."""
    every = [f"trainer.max_steps={STEPS}", f"checkpoint.every={SAVE_EVERY}", "scheduler=cosine"]
    with output.open("w") as file:
        process = psutil.Popen(
            tiny_command(run_dir, *every, *campaign.overrides), stdout=file, stderr=subprocess.STDOUT
        )
    return Start(process, run_dir, chance, STEPS, SAVE_EVERY, campaign.seconds_to_start)


def draw(seed: int, kinds: Sequence[str]) -> list[str]:
    """Draw the faults of a trial: the first one cycles through all kinds; up to two more are random."""
    chance = random.Random(seed)
    more = chance.choice((0, 0, 0, 0, 1, 2))
    return [kinds[seed % len(kinds)], *(chance.choice(kinds) for _ in range(more))]


def run_trial(campaign: Campaign, seed: int) -> Trial:
    """Damage a run, let it finish, and judge it."""
    trial = Trial(seed, draw(seed, campaign.kinds))
    chance = random.Random(f"moments of {seed}")
    scratch = campaign.folder / f"trial_{seed}"
    disk = scratch / "disk"
    disk.mkdir(parents=True)
    if campaign.mounts:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    try:
        for name in [*trial.faults, *[None] * STARTS_AFTER]:
            trial.lost = one_start(campaign, trial, disk / "run", scratch, name, chance)
            if trial.lost or (name is None and trial.codes[-1] == 0):
                break
        trial.lost = trial.lost or judge(campaign, trial, disk / "run")
        if trial.lost:
            keep(scratch, campaign.out / "faults" / str(seed))
    finally:
        make_writable(disk / "run")
        if campaign.mounts:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    shutil.rmtree(scratch)
    return trial


def one_start(
    campaign: Campaign, trial: Trial, run_dir: Path, scratch: Path, name: str | None, chance: random.Random
) -> str:
    """Start the command once and inject the fault ``name``; returns why the run is lost, or nothing."""
    output = scratch / f"start_{len(trial.codes)}.txt"
    before, damaged = last_step(run_dir), set(marked(run_dir))
    began = time.monotonic()
    running = start(campaign, run_dir, output, chance)
    everyone = running.everyone()
    if name is not None:
        trial.struck.append(FAULTS[name].strike(running))
        everyone = running.everyone()
    try:
        trial.codes.append(running.process.wait(LONGEST_SECONDS))
        psutil.wait_procs(everyone, timeout=30)
    except psutil.TimeoutExpired:
        running.kill(running.everyone())
        return f"start {len(trial.codes)} did not end in {LONGEST_SECONDS:.0f} s"
    finally:
        trial.seconds += time.monotonic() - began
        if name is not None:
            FAULTS[name].undo(run_dir)
    said = output.read_text()
    trial.last_lines.append(" ".join(said.rstrip().splitlines()[-1:])[:200])
    resumed = re.findall(r"resuming from (\S+) at step (\d+)", said)
    if resumed:
        trial.steps_again += max(before - int(resumed[0][1]), 0)
    return loaded_damage(resumed[0][0] if resumed else "", damaged, said)


def marked(run_dir: Path) -> list[Path]:
    """Checkpoints that the campaign has damaged."""
    return sorted(mark.parent for mark in (run_dir / "checkpoints").glob(f"step_*/{MARK}"))


def loaded_damage(resumed: str, damaged: set[Path], said: str) -> str:
    """The mistake of a start that met damaged checkpoints; empty if the start named and skipped all of them."""
    for folder in damaged if resumed else ():
        if Path(resumed) == folder:
            return f"the damaged {folder.name} was loaded"
        if folder.name > Path(resumed).name and f"checkpoint {folder} " not in said:
            return f"the damaged {folder.name} was passed over without a word"
    return ""


def last_step(run_dir: Path) -> int:
    try:
        lines = training(run_dir)
    except (OSError, ValueError):  # none yet, or a line torn by a kill
        return 0
    return lines[-1]["step"] if lines else 0


def judge(campaign: Campaign, trial: Trial, run_dir: Path) -> str:
    """Compare a finished run with the undisturbed one; returns why it is lost, or nothing."""
    if trial.codes[-1] != 0:
        return f"exit codes {trial.codes}: the same command did not finish"
    final, wanted = (step_folder(folder / "checkpoints", STEPS) for folder in (run_dir, campaign.reference))
    if final not in complete_checkpoints(run_dir / "checkpoints"):
        return "there is no final checkpoint"
    problem = verify(final)
    if problem:
        return f"the final checkpoint {problem}"
    ours, theirs = tensors(final), tensors(wanted)
    differing = [name for name in theirs if name not in ours or not torch.equal(ours[name], theirs[name])]
    if differing or ours.keys() != theirs.keys():
        return f"{len(differing)} of {len(theirs)} tensors differ from the undisturbed run's, such as {differing[:1]}"
    if (final / STATE).read_text() != (wanted / STATE).read_text():
        return f"{STATE} differs from the undisturbed run's"
    if training(run_dir) != training(campaign.reference):
        return "the curve in metrics.jsonl differs from the undisturbed run's"
    return ""


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint by name, merged from the parts of all ranks."""
    source = Checkpoint(checkpoint)
    wholes = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in source.shapes.items()}
    source.read(wholes)
    return wholes


def keep(scratch: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(scratch, target)


def rows(trials: Sequence[Trial], kinds: Sequence[str], undisturbed: float) -> list[list[str]]:
    """For each kind of fault: strikes, trials, recovered trials, means of repeated steps and lost seconds."""
    table = []
    for kind in [*kinds, "all"]:
        mine = [trial for trial in trials if kind == "all" or kind in trial.faults]
        strikes = Counter(
            name for trial in trials for name, hit in zip(trial.faults, trial.struck, strict=False) if hit
        )
        if not mine:
            continue
        table.append(
            [
                kind,
                str(sum(strikes.values()) if kind == "all" else strikes[kind]),
                str(len(mine)),
                str(sum(not trial.lost for trial in mine)),
                f"{statistics.mean(trial.steps_again for trial in mine):.1f}",
                f"{statistics.mean(trial.seconds - undisturbed for trial in mine):.1f}",
            ]
        )
    return table


def show(trials: Sequence[Trial], kinds: Sequence[str], undisturbed: float) -> None:
    titles = ("fault", "strikes", "trials", "recovered", "steps again", "seconds lost")
    table = Table(*titles, title=f"{len(trials)} trials of {STEPS} steps; undisturbed: {undisturbed:.1f} s")
    for row in rows(trials, kinds, undisturbed):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for trial in trials:
        if trial.lost:
            print(f"seed {trial.seed} ({', '.join(trial.faults)}): {trial.lost}")


def run_trials(campaign: Campaign, trials: list[Trial], seeds: Sequence[int], parallel: int) -> list[Trial]:
    """Run a trial for each of ``seeds``, and add it to ``trials``; each is written at once."""
    campaign.out.mkdir(parents=True, exist_ok=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(parallel) as pool:
        bar = progress.add_task("faults", total=len(seeds))
        try:
            for future in as_completed([pool.submit(run_trial, campaign, seed) for seed in seeds]):
                trials.append(future.result())
                (campaign.out / RESULTS).write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
                lost = sum(bool(trial.lost) for trial in trials)
                progress.update(bar, advance=1, description=f"faults, {lost} lost" if lost else "faults")
        except BaseException:  # Ctrl-C reaches the commands too: trials that run end now, no other begins
            pool.shutdown(cancel_futures=True)
            raise
    return sorted(trials, key=lambda trial: trial.seed)


def earlier(file: Path, seeds: Sequence[int]) -> list[Trial]:
    """Trials of an interrupted campaign."""
    found = json.loads(file.read_text()) if file.exists() else []
    return [Trial(**trial) for trial in found if trial["seed"] in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="further values for the recipe")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--plan", default="ddp")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=2, help="trials at a time")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder for results and failed trials (default: build)")
    parser.add_argument("--go-on", action="store_true", help="keep the trials of an interrupted campaign")
    options = parser.parse_intermixed_args(argv)
    overrides = [*options.overrides, f"plan={options.plan}", "--nproc", str(options.ranks)]
    with tempfile.TemporaryDirectory(prefix="faults") as name:
        folder = Path(name)
        os.environ.setdefault("TRIREME_CACHE", str(folder / "cache"))
        reason = can_mount(folder)
        kinds = [kind for kind, fault in FAULTS.items() if not (fault.mounts and reason)]
        if reason:
            print(f"left out: {', '.join(sorted(FAULTS.keys() - set(kinds)))} ({reason})", file=sys.stderr)
        seeds = range(options.seed, options.seed + options.trials)
        trials = earlier(options.out / RESULTS, seeds) if options.go_on else []
        left = [seed for seed in seeds if seed not in {trial.seed for trial in trials}]
        campaign = prepare(folder, overrides, kinds, not reason, options.out)
        trials = run_trials(campaign, trials, left, options.parallel)
    show(trials, kinds, campaign.seconds)
    print(f"{options.plan} on {options.ranks} rank(s), seeds {seeds[0]} to {seeds[-1]}")
    return 1 if any(trial.lost for trial in trials) else 0


if __name__ == "__main__":
    sys.exit(main())
