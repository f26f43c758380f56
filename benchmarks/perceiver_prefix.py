"""Measure what a prefix is worth to a trained Perceiver AR: the held-out loss of its latents by its length.

The latents are the same tokens every time, the last ones of each held-out block; only what stands before them changes.
The numbers go to the terminal, and a picture of them to docs.

    trireme train pretrain/perceiver_ar_stdlib
    python benchmarks/perceiver_prefix.py runs/perceiver_ar_stdlib            # a minute on two cores
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

PICTURE = Path(__file__).parents[1] / "docs" / "perceiver-prefix.svg"
PREFIXES = (0, 16, 32, 64, 128, 256, 384)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--samples", type=int, default=512, help="held-out blocks")
    parser.add_argument("--prefixes", type=int, nargs="+", default=PREFIXES)
    options = parser.parse_args(argv)
    losses = [loss(options.run, prefix, options.samples) for prefix in options.prefixes]
    for prefix, found in zip(options.prefixes, losses, strict=True):
        print(f"prefix of {prefix:>4} tokens: {found:.3f} nats per token")
    draw(options.prefixes, losses)
    print(PICTURE)
    return 0


def loss(run: str, prefix: int, samples: int) -> float:
    """Held-out loss with the newest checkpoint of ``run``, in nats per token."""
    command = [sys.executable, "-m", "trireme.launch.evaluate", f"{run}/recipe.yaml", "--json"]
    command += [f"collator.eval_prefix={prefix}", f"trainer.eval_samples={samples}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["eval_loss"])


def draw(prefixes: Sequence[int], losses: Sequence[float]) -> None:
    plt.rcParams |= {"svg.hashsalt": "trireme", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    axes.plot(prefixes, losses, marker="o", markersize=3.5, linewidth=1.2, color="#205a8c")
    axes.set_xscale("symlog", base=2, linthresh=16)
    axes.set_xticks(list(prefixes), [str(prefix) for prefix in prefixes])
    axes.minorticks_off()
    axes.set_xlabel("tokens of the prefix")
    axes.set_ylabel("nats per token of the latents")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
