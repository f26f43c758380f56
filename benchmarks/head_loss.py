"""Measure the time and memory of the cross-entropy over a large vocabulary, computed in three ways.

The loss is computed in chunks (``model.loss=chunked``), from all logits at once, and by torch's
``F.linear_cross_entropy``. Each measurement is one forward and backward pass from the last hidden states and the weight
of the output head, in its own process; in fp32 on one thread unless told otherwise. They take turns, so that changes in
the machine's speed affect all. The result is the median ratio of neighbouring turns, in elapsed time and in CPU time,
which other load disturbs less. Memory is the peak resident size (on a GPU, allocated memory) minus that before the
pass, without the gradient of the weight, which all three need.

    python benchmarks/head_loss.py                                  # some five minutes
    python benchmarks/head_loss.py --words 32000 65536 131072       # by size of the vocabulary
    python benchmarks/head_loss.py --device cuda --precision bf16 --tokens 16384 --width 2048 --words 248320
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
WAYS = ("plain", "chunked", "torch")
"""``torch`` is ``F.linear_cross_entropy`` with pieces of 256 tokens; with automatic ones it takes minutes on a CPU."""
TORCH_PIECE = 256


def loss_of(way: str) -> Callable:
    """The function (hidden, weight, labels) -> sum of the losses."""
    import torch.nn.functional as F

    if way == "plain":
        from trireme.models.loss import token_loss

        return lambda hidden, weight, labels: token_loss(F.linear(hidden, weight)[None], labels[None])
    if way == "chunked":
        from trireme.models.linear_loss import token_losses

        return lambda hidden, weight, labels: token_losses(hidden, weight, labels)[0].sum()
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions(batch_chunk_size=TORCH_PIECE)
    return lambda hidden, weight, labels: F.linear_cross_entropy(
        hidden, weight, labels, reduction="sum", options=options
    )


def measure(way: str, sizes: argparse.Namespace) -> dict[str, float]:
    """Measure one pass: elapsed and CPU seconds, bytes besides the weight's gradient, mean loss and gradient norms."""
    import torch

    kind = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
    words = sizes.words[0]
    torch.manual_seed(0)
    hidden = torch.randn(sizes.tokens, sizes.width, device=sizes.device, dtype=kind, requires_grad=True)
    weight = (torch.randn(words, sizes.width, device=sizes.device) / sizes.width**0.5).to(kind).requires_grad_()
    labels = torch.randint(0, words, (sizes.tokens,), device=sizes.device)
    loss = loss_of(way)
    loss(hidden[:16], weight[:64], labels[:16] % 64).backward()  # kernels are loaded before the clock starts
    hidden.grad = weight.grad = None
    before = _begin(sizes.device)
    clock, processor = time.perf_counter(), time.process_time()
    value = loss(hidden, weight, labels)
    value.backward()
    if sizes.device != "cpu":
        torch.cuda.synchronize()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    most = _peak(sizes.device) - before
    assert hidden.grad is not None and weight.grad is not None
    return {
        "clock": clock,
        "processor": processor,
        "extra": most - weight.numel() * weight.element_size(),
        "loss": float(value) / sizes.tokens,
        "hidden": float(hidden.grad.double().norm()),
        "weight": float(weight.grad.double().norm()),
    }


def _begin(device: str) -> int:
    """Reset the peak of memory; returns the bytes in use now."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def _peak(device: str) -> int:
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return _resident("VmHWM")


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def turn(way: str, words: int, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--way", way, "--words", str(words)]
    for name in ("tokens", "width", "precision", "device"):
        command += [f"--{name}", str(getattr(arguments, name))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compare(words: int, arguments: argparse.Namespace) -> None:
    ways = [way for way in WAYS if way in arguments.ways]
    turns = [{way: turn(way, words, arguments) for way in ways} for _ in range(arguments.rounds)]
    print(f"{arguments.tokens} tokens x {arguments.width} x {words} words, {arguments.precision} on {arguments.device}")
    for way in ways:
        found = {name: statistics.median(each[way][name] for each in turns) for name in turns[0][way]}
        ratios = {
            name: statistics.median(each[way][name] / each[ways[0]][name] for each in turns)
            for name in ("clock", "processor", "extra")
        }
        print(
            f"  {way:8} {found['clock']:7.2f} s ({ratios['clock']:.2f}), on the processor {found['processor']:7.2f} s "
            f"({ratios['processor']:.2f}), beside the gradient {found['extra'] / 2**20:8.1f} MiB "
            f"({ratios['extra']:.3f}); loss {found['loss']:.6f}, norms {found['hidden']:.6f} {found['weight']:.6f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--words", type=int, nargs="+", default=[262_144])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments)))
        return
    for words in arguments.words:
        compare(words, arguments)


if __name__ == "__main__":
    main()
