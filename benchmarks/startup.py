"""Measure the start-up time of ``trireme check`` and ``trireme train``, and of tab completion.

Completion is compared with an empty Python program, and ``check`` with importing torch and transformers. ``train``
with one step, in one process and on two ranks, is compared with a usual script: the same small model, AdamW, a batch
from ``datasets``, and DDP under torchrun. trireme's command also checks the recipe and opens a run folder; its data
were prepared by an earlier start. "First" means with an empty cache folder. The commands take turns, so that changes in
the machine's speed affect all. The results are medians and ratios of medians, in elapsed time and in CPU time, which
other load disturbs less.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 9 --case check
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Python's default: what has been compiled once is kept

from rich.console import Console
from rich.progress import track
from rich.table import Table

RECIPE = Path(__file__).parents[1] / "tests" / "recipes" / "tiny.yaml"
FIRST = "first"
IMPORTS = "import torch; from transformers import AutoConfig"
SCRIPT = """
import os
import datasets, torch
from transformers import PersimmonConfig, PersimmonForCausalLM

torch.manual_seed(0)
data = datasets.Dataset.from_dict({"input_ids": torch.randint(512, (64, 32)).tolist()}).with_format("torch")
model = PersimmonForCausalLM(
    PersimmonConfig(vocab_size=512, hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4)
)
if "RANK" in os.environ:
    torch.distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters())
batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8)))
loss = model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss
loss.backward()
optimizer.step()
print(loss.item())
if "RANK" in os.environ:
    torch.distributed.destroy_process_group()
"""


def commands(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Name of a case -> trireme's command, and the command that it is compared with."""
    python, script = sys.executable, folder / "script.py"
    script.write_text(SCRIPT)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    recipe = [str(RECIPE), f"data.source.roots=[{stdlib / 'json'},{stdlib / 'email'}]", f"run.dir={folder / 'run'}"]
    recipe += ["trainer.max_steps=1", "trainer.eval_at_end=false", "checkpoint.at_end=false"]
    trireme, two = [python, "-m", "trireme.launch.cli"], ["plan=ddp", "--nproc", "2"]
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    complete, nothing = [*trireme, "__complete", "train", str(RECIPE), "trainer."], [python, "-c", ""]
    return {
        f"{FIRST} completion of keys; python": (complete, nothing),
        "completion of keys; python": (complete, nothing),
        f"{FIRST} check; imports": ([*trireme, "check", *recipe], [python, "-c", IMPORTS]),
        "check; imports": ([*trireme, "check", *recipe], [python, "-c", IMPORTS]),
        "check, two ranks; imports": ([*trireme, "check", *recipe, *two], [python, "-c", IMPORTS]),
        "train, one process": ([*trireme, "train", *recipe, "--fresh"], [python, str(script)]),
        "train, two ranks": ([*trireme, "train", *recipe, "--fresh", *two], [*torchrun, str(script)]),
    }


class Seconds(NamedTuple):
    """Elapsed and CPU seconds of one command, with all processes that it starts."""

    waited: float
    processor: float


Times = dict[str, tuple[list[Seconds], list[Seconds]]]


def seconds(command: list[str], environment: dict[str, str]) -> Seconds:
    began, used = time.perf_counter(), _processor()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return Seconds(time.perf_counter() - began, _processor() - used)


def _processor() -> float:
    """Seconds of the processor that finished child processes have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(folder: Path, rounds: int, only: str) -> Times:
    """Seconds of both commands of each case, ``rounds`` times in turn, after one round that is not counted."""
    cases = {name: pair for name, pair in commands(folder).items() if only in name}
    found: Times = {name: ([], []) for name in cases}
    for number in track(range(rounds + 1), "starting", console=Console(stderr=True)):
        for name, pair in cases.items():
            cache = folder / (f"{FIRST}{number}_{len(name)}" if name.startswith(FIRST) else "cache")
            for command, times in zip(pair, found[name], strict=True):
                taken = seconds(command, {"TRIREME_CACHE": str(cache)})
                if number:
                    times.append(taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is timed")
    parser.add_argument("--case", default="", help="only cases whose name has these letters")
    options = parser.parse_args()
    columns = ("trireme, s", "bare, s", "ratio", "trireme, processor", "bare", "ratio")
    table = Table("start", *columns, title=f"medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="startup") as name:
        for case, sides in measure(Path(name), options.rounds, options.case).items():
            row = [case]
            for kind in ("waited", "processor"):
                one, other = (statistics.median(getattr(times, kind) for times in side) for side in sides)
                row += [f"{one:.2f}", f"{other:.2f}", f"{one / other:.2f}"]
            table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
