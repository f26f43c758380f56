"""Measure the overhead of trireme's training loop: the time of its step divided by that of a plain PyTorch step.

Both train the same model on the same batches with the same optimizer, clipping and logging interval. They take turns in
one process, in blocks of steps, so that changes in the machine's speed affect both. The result is the median ratio of
neighbouring blocks. The loop's own work, in ms per step, is measured with a tiny model.

    python benchmarks/engine_overhead.py            # steps of about 50 ms on a laptop core
    python benchmarks/engine_overhead.py --hidden 512 --rounds 20
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
from trireme.models.loss import IGNORE, token_loss
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.run_folder import open_run_folder

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
    """The step that a PyTorch user writes: forward, backward, clip, step, zero; the loss is read every ten steps."""

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
            labels = micro.targets["labels"]
            loss = token_loss(self.model(input_ids=micro.inputs["input_ids"]).logits, labels)
            loss = loss / (labels != IGNORE).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if step % 10 == 0:
                loss.item()
        self.seconds.append((time.perf_counter() - start) / self.block)


TINY = 16
"""The smallest width: four heads of four features, two of which have rotary positions."""


def recipe_of(run_dir: str, hidden: int, length: int, steps: int) -> RecipeConfig:
    roots = ",".join(str(Path(sysconfig.get_paths()["stdlib"]) / name) for name in ("json", "email", "asyncio"))
    overrides = [
        f"run.dir={run_dir}",
        f"data.source.roots=[{roots}]",
        f"data.block_size={length}",
        f"model.config.hidden_size={hidden}",
        f"model.config.intermediate_size={4 * hidden}",
        f"trainer.max_steps={steps}",
        "trainer.log_every=10",
        "trainer.eval_at_end=false",
        "checkpoint.at_end=false",
        "trainer.global_batch_size=8",
        "trainer.micro_batch_size=8",
    ]
    recipe, problems = read_recipe(compose(str(RECIPE), overrides).raw, lambda plan: 1)
    if recipe is None:
        sys.exit("\n".join(map(str, problems)))
    return recipe


def measure(hidden: int, length: int, block: int, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds per step of the engine and of the bare loop, block by block in turn."""
    with tempfile.TemporaryDirectory() as folder:
        bare = BareLoop(recipe_of(f"{folder}/bare", hidden, length, 1), block)
        recipe = recipe_of(f"{folder}/engine", hidden, length, block * (rounds + 1))
        open_run_folder(Path(recipe.run.dir), fresh=False)
        trainer = build(recipe, build_mesh(recipe.plan))
        stopwatch = Stopwatch(block, bare.run_block)
        trainer.callbacks["stopwatch"] = stopwatch
        trainer.fit()
    return stopwatch.seconds[1:], bare.seconds[1:]  # the first round warms both up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=96, help="model width; 96 gives steps of about 50 ms")
    parser.add_argument("--block", type=int, default=10, help="steps per block")
    parser.add_argument("--rounds", type=int, default=50, help="blocks of each side")
    options = parser.parse_args()
    torch.set_num_threads(1)

    ours, theirs = measure(options.hidden, 128, options.block, options.rounds)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    bare = 1e3 * statistics.median(theirs)
    print(f"bare PyTorch step {bare:.2f} ms, trireme step {1e3 * statistics.median(ours):.2f} ms (medians)")
    print(f"ratio, pair by pair: median {middle:.4f}, half of the pairs between {low:.4f} and {high:.4f}")

    # The engine's own work does not grow with the model, so a model of almost no work shows it without the noise.
    ours, theirs = measure(TINY, 8, options.block, 2 * options.rounds)
    cost = 1e3 * statistics.median(a - b for a, b in zip(ours, theirs, strict=True))
    print(f"the engine's own work: {cost:.3f} ms per step, {100 * cost / 50:.2f} % of a step of 50 ms")


if __name__ == "__main__":
    main()
