"""Measure how much a trained Perceiver AR or Transformer-XL gains from distant context: print and draw its loss on
held-out text for several context lengths.

The loss is always computed on the same tokens. Only the context before them changes: the prefix of a Perceiver AR, or
the memory of a Transformer-XL. The script prints the losses and draws them into an SVG file in ``docs``.

    trireme train pretrain/perceiver_ar_stdlib
    python benchmarks/context_worth.py prefix runs/perceiver_ar_stdlib            # a minute on two cores
    trireme train pretrain/transformer_xl_stdlib
    python benchmarks/context_worth.py memory runs/transformer_xl_stdlib
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Context:
    """A kind of context, and how it is measured."""

    key: str
    """Key of the recipe that sets its length."""
    lengths: tuple[int, ...]
    samples: int
    """Held-out samples."""
    file: str
    """Name of the SVG file."""
    x_label: str
    y_label: str


CONTEXTS = {
    "prefix": Context(
        "collator.eval_prefix",
        (0, 16, 32, 64, 128, 256, 384),
        512,
        "perceiver-prefix.svg",
        "tokens of the prefix",
        "nats per token of the latents",
    ),
    "memory": Context(
        "model.config.mem_len",
        (0, 16, 32, 64, 128, 256),
        1024,
        "transformer-xl-memory.svg",
        "tokens that the model remembers beside its segment",
        "nats per token",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("context", choices=CONTEXTS)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("--samples", type=int, help="held-out samples")
    parser.add_argument("--lengths", type=int, nargs="+")
    options = parser.parse_args(argv)
    context = CONTEXTS[options.context]
    lengths, losses = options.lengths or context.lengths, []
    for length in lengths:
        losses.append(loss(options.run, f"{context.key}={length}", options.samples or context.samples))
        print(f"{options.context} of {length:>4} tokens: {losses[-1]:.3f} {context.y_label}", flush=True)
    draw(context, lengths, losses)
    print(DOCS / context.file)
    return 0


def loss(run: str, override: str, samples: int) -> float:
    """Held-out loss with the newest checkpoint of ``run``, in nats per token."""
    command = [sys.executable, "-m", "trireme.launch.evaluate", f"{run}/recipe.yaml", "--json"]
    command += [override, f"trainer.eval_samples={samples}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["eval_loss"])


def draw(context: Context, lengths: Sequence[int], losses: Sequence[float]) -> None:
    plt.rcParams |= {"svg.hashsalt": "trireme", "svg.fonttype": "none", "font.size": 9}
    figure, axes = plt.subplots(figsize=(5.2, 3.0), layout="constrained")
    axes.plot(lengths, losses, marker="o", markersize=3.5, linewidth=1.2, color="#205a8c")
    axes.set_xscale("symlog", base=2, linthresh=16)
    axes.set_xticks(list(lengths), [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel(context.x_label)
    axes.set_ylabel(context.y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(DOCS / context.file, metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
