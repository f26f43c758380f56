"""Measure how much time a training step takes with trireme's reproducible dropout and NEFTune, compared with torch's
dropout.

trireme draws every dropout mask from a counter-based generator, keyed by seed, step and sample. Four versions of the
same model take turns: without dropout, with torch's dropout, with trireme's dropout, and with trireme's dropout and
NEFTune. Each round runs one step of every version. The cost is the additional time over the step without dropout, as a
share of that step, and as the median over all rounds. On a CPU, CPU time is measured, which other load disturbs less;
on a GPU, elapsed time.

    python benchmarks/dropout_cost.py                        # about two minutes on one core
    python benchmarks/dropout_cost.py --device cuda --precision bf16 --hidden 1024 --layers 12 --batch 16
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from trireme.models.attach_noise import add_noise
from trireme.models.family import families
from trireme.models.noise import Noise

WAYS = ("none", "torch", "keys", "keys and NEFTune")
SHARE = 0.1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    tokens = torch.randint(0, 8192, (options.batch, options.length), device=options.device)
    steps = {way: _step(way, options, tokens) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(options.rounds + 2):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:  # no way is always the first
            elapsed = _timed(steps[way], number, options.device)
            if number >= 2:
                times[way].append(elapsed)
    base = statistics.median(times["none"])
    print(
        f"step without dropout: {1000 * base:.1f} ms ({options.device}, {options.precision}, torch {torch.__version__})"
    )
    for way in WAYS[1:]:
        costs = sorted((one - none) / base for one, none in zip(times[way], times["none"], strict=True))
        quarter = len(costs) // 4
        low, high = costs[quarter], costs[-1 - quarter]
        print(f"{way:>17}: {statistics.median(costs):+.2%} (half of the rounds {low:+.2%} to {high:+.2%})")
    return 0


def _step(way: str, options: argparse.Namespace, tokens: Tensor) -> Callable[[int], None]:
    share = 0.0 if way == "none" else SHARE
    config = GPT2Config(
        vocab_size=8192,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=options.hidden // 64,
        n_positions=options.length,
        resid_pdrop=share,
        embd_pdrop=share,
        attn_pdrop=0.0,  # off: the attention kernel draws this dropout, with and without keys
        use_cache=False,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    noise = Noise(5.0 if "NEFTune" in way else None) if "keys" in way else None
    if noise is not None:
        add_noise(model, families()["gpt2"], noise)
    samples = torch.arange(len(tokens), device=tokens.device)
    cast = torch.autocast(tokens.device.type, torch.bfloat16, enabled=options.precision == "bf16")

    def step(number: int) -> None:
        if noise is not None:
            noise.begin_step(0, number)
        with nullcontext() if noise is None else noise.running(noise.keys_of(samples + number * len(tokens))):
            with cast:
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _timed(step: Callable[[int], None], number: int, device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    step(number)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - began


if __name__ == "__main__":
    raise SystemExit(main())
