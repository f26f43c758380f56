"""What the engine costs: a step through trireme over the same step written directly in PyTorch.

Both train the same model on the same batches with the same optimizer, clipping and logging cadence; they take turns in
one process, in blocks of steps, so that a machine whose speed drifts slows both. The ratio of the medians is the
figure.

    python benchmarks/engine_overhead.py            # steps of about 50 ms on a laptop core
    python benchmarks/engine_overhead.py --hidden 512 --rounds 12
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core for the step, one for the rest of the machine

import torch
from trireme.configs.schema import RecipeConfig, read_recipe
from trireme.launch.compose import compose
from trireme.models.loss import causal_lm_loss
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.callbacks.callback import Callback

RECIPE = Path(__file__).parents[1] / "tests" / "recipes" / "tiny.yaml"


class Stopwatch(Callback):
    """Seconds of each block of steps, from one block's end to the next."""

    def __init__(self, block: int, between) -> None:
        self.block, self.between, self.seconds = block, between, []

    def on_train_begin(self, trainer, state, control) -> None:
        self.then = time.perf_counter()

    def on_step_end(self, trainer, state, control) -> None:
        if state.step % self.block == 0:
            self.seconds.append((time.perf_counter() - self.then) / self.block)
            self.between()
            self.then = time.perf_counter()


class BareLoop:
    """The step a PyTorch user writes: forward, backward, clip, step, zero, and the loss looked at every ten steps."""

    def __init__(self, recipe: RecipeConfig, block: int) -> None:
        trainer = build(recipe, build_mesh(recipe.plan))
        self.model, self.block, self.seconds = trainer.strategy.module, block, []
        self.batches = iter(trainer.corpus.train_batches({}, 0, 10**6, 0, 1))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True
        )

    def run_block(self) -> None:
        start = time.perf_counter()
        for step in range(self.block):
            micro = next(self.batches).micro_batches[0]
            loss = causal_lm_loss(self.model(input_ids=micro["input_ids"]).logits, micro["labels"])
            loss = loss / (micro["labels"][:, 1:] != -100).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if step % 10 == 0:
                loss.item()
        self.seconds.append((time.perf_counter() - start) / self.block)


def recipe_of(options: argparse.Namespace, run_dir: str, steps: int) -> RecipeConfig:
    roots = ",".join(str(Path(sysconfig.get_paths()["stdlib"]) / name) for name in ("json", "email", "asyncio"))
    composed = compose(
        str(RECIPE),
        [
            f"run.dir={run_dir}",
            f"data.source.roots=[{roots}]",
            "data.block_size=128",
            f"trainer.max_steps={steps}",
            "trainer.log_every=10",
            "trainer.eval_at_end=false",
            "checkpoint.at_end=false",
            "trainer.global_batch_size=8",
            "trainer.micro_batch_size=8",
            f"model.config.hidden_size={options.hidden}",
            f"model.config.intermediate_size={4 * options.hidden}",
        ],
    )
    recipe, problems = read_recipe(composed.raw, lambda plan: 1)
    if recipe is None:
        sys.exit("\n".join(map(str, problems)))
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=192, help="model width; 192 gives about 50 ms steps")
    parser.add_argument("--block", type=int, default=20, help="steps in turn")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bare = BareLoop(recipe_of(options, f"{folder}/bare", 1), options.block)
        recipe = recipe_of(options, f"{folder}/engine", options.block * (options.rounds + 1))
        trainer = build(recipe, build_mesh(recipe.plan))
        stopwatch = Stopwatch(options.block, bare.run_block)
        trainer.callbacks["stopwatch"] = stopwatch
        trainer.fit()
    ours, theirs = stopwatch.seconds[1:], bare.seconds[1:]  # the first round warms both up
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"bare PyTorch step   median {1e3 * statistics.median(theirs):8.2f} ms")
    print(f"trireme step        median {1e3 * statistics.median(ours):8.2f} ms")
    print(f"ratio               median {statistics.median(ratios):8.4f}  (pairs {ratios[0]:.4f} to {ratios[-1]:.4f})")


if __name__ == "__main__":
    main()
