"""Measure the time of a start: whole commands with a single step, compared with the libraries alone.

``check`` is compared with importing torch and transformers. ``train`` of one step, on one process and on two ranks, is
compared with a usual script (the same small model, AdamW, a batch from ``datasets``; DDP under torchrun). trireme's
command also checks the recipe and opens a run folder; the data were prepared by an earlier start. Commands take turns,
so that changes in the machine's speed affect all; the results are medians and ratios of medians.

    python benchmarks/startup.py
    python benchmarks/startup.py --rounds 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from rich.console import Console
from rich.progress import track
from rich.table import Table

RECIPE = Path(__file__).parents[1] / "tests" / "recipes" / "tiny.yaml"
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
    """Name -> trireme's command and the bare one."""
    python, script = sys.executable, folder / "script.py"
    script.write_text(SCRIPT)
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    recipe = [str(RECIPE), f"data.source.roots=[{stdlib / 'json'},{stdlib / 'email'}]", f"run.dir={folder / 'run'}"]
    recipe += ["trainer.max_steps=1", "trainer.eval_at_end=false", "checkpoint.at_end=false"]
    trireme, two = [python, "-m", "trireme.launch.cli"], ["plan=ddp", "--nproc", "2"]
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return {
        "completion of keys; python": ([*trireme, "__complete", "train", str(RECIPE), "trainer."], [python, "-c", ""]),
        "check; imports": ([*trireme, "check", *recipe], [python, "-c", IMPORTS]),
        "check, two ranks; imports": ([*trireme, "check", *recipe, *two], [python, "-c", IMPORTS]),
        "train, one process": ([*trireme, "train", *recipe, "--fresh"], [python, str(script)]),
        "train, two ranks": ([*trireme, "train", *recipe, "--fresh", *two], [*torchrun, str(script)]),
    }


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def measure(folder: Path, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of trireme's command and of the bare one, ``rounds`` times in turn, after a warm-up."""
    cases = commands(folder)
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
    for number in track(range(rounds + 1), "starting", console=Console(stderr=True)):
        for name, pair in cases.items():
            for command, times in zip(pair, found[name], strict=True):
                taken = seconds(command)
                if number:
                    times.append(taken)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is timed")
    options = parser.parse_args()
    table = Table("start", "trireme, s", "bare, s", "ratio", title=f"medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="startup") as name:
        os.environ["TRIREME_CACHE"] = f"{name}/cache"
        for case, (ours, theirs) in measure(Path(name), options.rounds).items():
            one, other = statistics.median(ours), statistics.median(theirs)
            table.add_row(case, f"{one:.2f}", f"{other:.2f}", f"{one / other:.2f}")
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
