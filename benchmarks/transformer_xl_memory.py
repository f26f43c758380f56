"""Measure what a memory is worth to a trained Transformer-XL: its held-out loss by the length of its memory.

The tokens are the same every time, in the same segments and lanes; only how far back the model remembers changes. The
numbers go to the terminal, and a picture of them to docs.

    trireme train pretrain/transformer_xl_stdlib
    python benchmarks/transformer_xl_memory.py runs/transformer_xl_stdlib
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).parents[1] / "docs" / "transformer-xl-memory.svg"
MEMORIES = (0, 16, 32, 64, 128, 256)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--samples", type=int, default=1024, help="held-out segments")
    parser.add_argument("--memories", type=int, nargs="+", default=MEMORIES)
    options = parser.parse_args(argv)
    losses = []
    for memory in options.memories:
        losses.append(loss(options.run, memory, options.samples))
        print(f"memory of {memory:>4} tokens: {losses[-1]:.3f} nats per token", flush=True)
    draw(options.memories, losses)
    print(PICTURE)
    return 0


def loss(run: str, memory: int, samples: int) -> float:
    """Held-out loss with the newest checkpoint of ``run``, in nats per token."""
    command = [sys.executable, "-m", "trireme.launch.evaluate", f"{run}/recipe.yaml", "--json"]
    command += [f"model.config.mem_len={memory}", f"trainer.eval_samples={samples}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["eval_loss"])


def draw(memories: Sequence[int], losses: Sequence[float]) -> None:
    plt.rcParams |= {"svg.hashsalt": "trireme", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    axes.plot(memories, losses, marker="o", markersize=3.5, linewidth=1.2, color="#205a8c")
    axes.set_xscale("symlog", base=2, linthresh=16)
    axes.set_xticks(list(memories), [str(memory) for memory in memories])
    axes.minorticks_off()
    axes.set_xlabel("tokens that the model remembers beside its segment")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
