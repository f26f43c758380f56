"""Compare the time and memory of a RecurrentGemma training step in trireme and in transformers. Also measure how both
grow with text length in trireme, which uses scans for the recurrence and attention inside its window only.

The model is small, with the published proportions: two recurrent blocks and one attention block. The attention window
is as long as the model is wide, so that attention has the same share of the work as in the 2B model. A step is forward,
backward and AdamW on one text, in fp32. Each measurement runs in a process of its own and gives the
shortest elapsed time and the shortest CPU time of several steps. Memory is the peak resident size minus the size before
the steps.

    python benchmarks/recurrent_gemma.py                    # some five minutes on two idle cores
    python benchmarks/recurrent_gemma.py --lengths 2048 4096 --stock 1024
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")

ROOT = Path(__file__).parents[1]
WIDTH = 512
MODEL = {
    "vocab_size": 512,
    "hidden_size": WIDTH,
    "intermediate_size": 6 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "lru_width": WIDTH,
    "attention_window_size": WIDTH,
    "use_cache": False,
}


def measure(way: str, length: int, steps: int) -> dict[str, float]:
    """Elapsed and CPU seconds of the fastest step, and bytes in addition to those before the steps."""
    import torch
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
    from trireme.models.linear_recurrent_gemma import use_linear_recurrence
    from trireme.models.loss import next_token_labels, token_loss

    torch.manual_seed(0)
    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**MODEL))
    if way == "linear":
        use_linear_recurrence(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(ids: torch.Tensor) -> None:
        token_loss(model(input_ids=ids).logits, next_token_labels(ids)).div(ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(torch.randint(0, 512, (1, 64)))  # moments are made, and kernels loaded, before the clock starts
    ids = torch.randint(0, 512, (1, length))
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    times = []
    for _ in range(steps):
        clock, processor = time.perf_counter(), time.process_time()
        step(ids)
        times.append((time.perf_counter() - clock, time.process_time() - processor))
    clock, processor = (min(each[part] for each in times) for part in (0, 1))
    return {"clock": clock, "processor": processor, "bytes": _resident("VmHWM") - before}


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def alone(way: str, length: int, steps: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--lengths", str(length), "--steps", str(steps)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "MALLOC_ARENA_MAX": "1"}
    environment |= {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16_384])
    parser.add_argument("--stock", type=int, default=2048, help="length at which transformers' class is measured")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.lengths[0], arguments.steps)))
        return
    stock = alone("stock", arguments.stock, min(arguments.steps, 2))
    print(f"stock  {arguments.stock:6} tokens {_text(stock)}")
    first: dict[str, float] = {}
    for length in sorted({arguments.stock, *arguments.lengths}):
        found = alone("linear", length, arguments.steps)
        print(f"linear {length:6} tokens {_text(found)}", end="")
        if length == arguments.stock:
            print("; stock takes", *(f"{stock[name] / found[name]:.1f}x the {name}," for name in found), end="")
        if length >= min(arguments.lengths):
            first = first or {name: value / length for name, value in found.items()}
            print("; per token", *(f"{found[name] / length / first[name]:.2f}x the {name}," for name in first), end="")
        print()


def _text(found: dict[str, float]) -> str:
    clock, processor, size = (found[name] for name in ("clock", "processor", "bytes"))
    return f"{clock:7.2f} s, on the processor {processor:7.2f} s, {size / 2**20:7.0f} MiB"


if __name__ == "__main__":
    main()
