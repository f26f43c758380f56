"""Compare speed and memory of trireme, transformers' Trainer, accelerate, TRL, Lightning Fabric and DeepSpeed in the
same training job, with an evaluation, a save and an export.

All start from the same weights, read the same blocks of tokens in the same order, and use AdamW with the same settings.
The held-out losses at the end must agree. Adapters are the exception: each library draws their first values itself, so
their losses are only shown. Each library runs as its users start it (``trireme train``, or torchrun for several ranks),
in an environment of its own if trireme's lacks the library. The libraries take turns, so that changes in the
machine's speed affect all. Times and memory are medians over the rounds. A ratio is the other library's value divided
by trireme's, as the median over the rounds. Above 1 the library takes more time or memory; for tokens per second, above
1 means that it is faster.

    python benchmarks/peers/compare.py                                    # ddp on two ranks, some ten minutes
    python benchmarks/peers/compare.py --plan zero2 --rounds 5
    python benchmarks/peers/compare.py --shape pretrain_1b --plan single  # on a GPU
    python benchmarks/peers/compare.py --shape small_lora --peers trireme,transformers,trl
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from helpers.environments import environment
from job import BETAS, CLIP, EPS, RATE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shapes import SHAPES, Shape

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TRIREME = "trireme"
PEERS = {
    TRIREME: ("single", "ddp", "zero1", "zero2", "zero3", "fsdp_full_shard"),
    "transformers": ("single", "ddp", "zero2", "zero3", "fsdp_full_shard"),
    "accelerate": ("single", "ddp", "fsdp_full_shard"),
    "trl": ("single", "ddp", "zero2", "zero3", "fsdp_full_shard"),
    "fabric": ("single", "ddp"),
    "deepspeed": ("ddp", "zero1", "zero2", "zero3"),
}
"""Plans that each library can run. On CPUs, Trainer, accelerate and TRL ignore FSDP and DeepSpeed, so there they run
single and ddp only."""
ON_GPU_ALONE = {
    "transformers": ("zero2", "zero3", "fsdp_full_shard"),
    "accelerate": ("fsdp_full_shard",),
    "trl": ("zero2", "zero3", "fsdp_full_shard"),
}
NEEDS = {
    "trl": [["--no-deps", "trl==1.16.0"]],
    "fabric": [["--no-deps", "lightning-fabric==2.6.6", "lightning-utilities==0.15.2"]],
}
"""Packages that the environment of a library holds in addition to trireme's."""
PACKAGES = {TRIREME: "trireme-train", "fabric": "lightning-fabric"}
"""Names of distributions that differ from the name of the library here."""
AFTER_SAVE = 6
"""Steps after a save that count as delayed by it: some write in the background."""
FIRST = 2
"""Steps before the rate is taken."""
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest relative difference of the losses at the end."""
TOKENS = 4096
"""Vocabulary of the tokenizer; a model may have more."""
STDLIB = ("asyncio", "email", "json", "unittest", "xml", "http", "logging", "concurrent", "importlib", "ctypes")


@dataclass(frozen=True)
class Measured:
    """The results of one run of one library."""

    first_step: float
    """Seconds from the command to the end of the first step."""
    rate: float
    """Tokens per second."""
    processor_rate: float
    """Tokens per second of the processor, over all ranks, which other load on the machine changes less."""
    stall: float
    """Seconds by which a save delays the steps after it."""
    evaluation: float
    export: float
    memory: float
    """MiB of a rank, as a mean over ranks: the peak of training."""
    evaluation_memory: float
    loss: float


TITLES = {
    "rate": "tokens/s",
    "processor_rate": "on the processor",
    "first_step": "first step, s",
    "stall": "save, s",
    "evaluation": "evaluation, s",
    "export": "export, s",
    "memory": "peak, MiB",
    "evaluation_memory": "in evaluation",
}


def roots() -> list[Path]:
    """Folders of Python's standard library that the text is from."""
    return [Path(sysconfig.get_paths()["stdlib"]) / name for name in STDLIB]


def prepare(folder: Path, shape: Shape) -> None:
    """Write the files that all libraries read: a tokenizer, the blocks of tokens in their order, and the weights."""
    import numpy as np
    import torch
    from helpers.foreign import rows
    from transformers import LlamaConfig, LlamaForCausalLM
    from trireme.configs.schema import read_recipe
    from trireme.launch.compose import compose
    from trireme.trainer.data.open_corpus import open_corpus
    from trireme.trainer.data.tokenizer import TokenizerConfig, load_or_train
    from trireme.trainer.tasks.causal_lm import CausalLM

    torch.manual_seed(0)
    dtype = torch.bfloat16 if shape.precision == "bf16" and shape.lora else torch.float32
    LlamaForCausalLM(LlamaConfig(**shape.model)).to(dtype).save_pretrained(folder / "weights")
    recipe = folder / "prepare.yaml"
    _write_recipe(recipe, folder, folder, shape, 1)
    texts = [file.read_text() for root in roots() for file in sorted(root.rglob("*.py"))]
    tokenizer = load_or_train(TokenizerConfig(vocab_size=TOKENS), lambda: iter(texts), "peers", str(folder))
    tokenizer.save_pretrained(folder / "tokenizer")
    composed = compose(str(recipe))
    typed, problems = read_recipe(composed.raw, lambda plan: 1)
    if typed is None:
        raise SystemExit("\n".join(map(str, problems)))
    read = open_corpus(typed.data, typed.seed, typed.trainer, CausalLM(), typed.collator)
    batches = read.train_batches({}, 0, shape.steps, 0, 1)
    train = [row for batch in batches for micro in batch.micro_batches for row in rows(micro)]
    held_out = [row for micro in read.eval_batches(shape.held_out) for row in rows(micro)]
    for name, found in (("train", train), ("held_out", held_out)):
        np.save(folder / f"{name}.npy", np.array([row["input_ids"] for row in found], dtype=np.int32))


def _write_recipe(file: Path, folder: Path, out: Path, shape: Shape, ranks: int, plan: str = "single") -> None:
    """The job as a recipe of trireme."""
    import yaml

    recipe: dict[str, Any] = {
        "defaults": [
            *("/base", {"/data": "python_stdlib"}, {"override /plan": plan}),
            *({"override /scheduler": "constant"}, {"override /callbacks": "minimal"}, "_self_"),
        ],
        "run": {"dir": str(out / "run")},
        "model": {"weights": str(folder / "weights"), "family": None},
        "data": {
            "tokenizer": {"path": str(folder / "tokenizer")},
            "source": {"roots": list(map(str, roots()))},
            "block_size": shape.length,
            "held_out": 0.15,
            "cache_dir": str(folder / "cache"),
        },
        "optimizer": {"lr": RATE, "betas": list(BETAS), "eps": EPS, "weight_decay": 0.0},
        "trainer": {
            "max_steps": shape.steps,
            "global_batch_size": shape.global_batch,
            "micro_batch_size": shape.micro_batch,
            "max_grad_norm": CLIP,
            "log_every": 10,
            "eval_every": None,
            "eval_at_end": True,
            "eval_samples": shape.held_out,
        },
        "checkpoint": {"every": shape.save_after},
        "plan": {"precision": shape.precision, "recompute": "full" if shape.recompute else "none"},
    }
    if shape.lora:
        recipe["defaults"].insert(-1, {"override /adapter": "lora"})
        recipe["model"]["adapter"] = {"rank": shape.lora, "alpha": 16}
    if file.stem != "prepare":
        noted = {"_target_": "trireme_marks.Noted", "out": str(out), "shape": dataclasses.asdict(shape)}
        recipe["callbacks"] = {"noted": noted}
    file.write_text("# The job of the comparison.\n" + yaml.safe_dump(recipe, sort_keys=False))


def run(peer: str, plan: str, folder: Path, shape: Shape) -> Measured:
    """Start a library as its users do, and read the measurements of its ranks."""
    ranks = 1 if plan == "single" else shape.ranks
    with tempfile.TemporaryDirectory(dir=folder) as name:
        out = Path(name)
        job = {"folder": str(folder), "out": str(out), "plan": plan, "shape": dataclasses.asdict(shape)}
        (out / "job.json").write_text(json.dumps(job))
        environ = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
        environ |= {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
        if shape.device == "cpu":
            environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        if peer == TRIREME:
            _write_recipe(out / "job.yaml", folder, out, shape, ranks, plan)
            environ["TRIREME_CACHE"] = str(folder / "trireme_cache")
            command = [
                sys.executable,
                "-m",
                "trireme.launch.cli",
                "train",
                str(out / "job.yaml"),
                "--nproc",
                str(ranks),
            ]
        else:
            python = environment(ROOT / "build" / "peers" / peer, NEEDS[peer]) if peer in NEEDS else sys.executable
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            launcher = torchrun if ranks > 1 or peer == "deepspeed" else []
            command = [str(python), *launcher, str(HERE / f"with_{peer}.py"), str(out / "job.json")]
        began = time.time()
        done = subprocess.run(command, env=environ, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{peer} failed under {plan}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found = [json.loads((out / f"marks_{rank}.json").read_text()) for rank in range(ranks)]
        return _measured(found, began, shape)


def _measured(found: Sequence[dict[str, Any]], began: float, shape: Shape) -> Measured:
    ends = [max(times) for times in zip(*(each["steps"] for each in found), strict=True)]
    used = [sum(times) for times in zip(*(each["processor"] for each in found), strict=True)]
    lasted = [after - before for before, after in pairwise(ends)]
    delayed = slice(shape.save_after - 1, shape.save_after - 1 + AFTER_SAVE)

    def plain(times: Sequence[float]) -> float:
        """The median step of those that no save delays."""
        each = [after - before for before, after in pairwise(times)]
        return statistics.median([*each[FIRST - 1 : delayed.start], *each[delayed.stop :]])

    usual = plain(ends)

    def mean(kind: str, what: str) -> float:
        return statistics.mean(each[kind][what] for each in found)

    return Measured(
        ends[0] - began,
        shape.global_batch * shape.length / usual,
        shape.global_batch * shape.length / plain(used),
        sum(lasted[delayed]) - AFTER_SAVE * usual,
        max(each["seconds"]["evaluation"] for each in found),
        max(each["seconds"]["export"] for each in found),
        mean("peaks", "training"),
        mean("peaks", "evaluation"),
        found[0]["loss"],
    )


def version(peer: str) -> str:
    python = str(ROOT / "build" / "peers" / peer / "bin" / "python") if peer in NEEDS else sys.executable
    ask = f"from importlib.metadata import version; print(version({PACKAGES.get(peer, peer)!r}))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()


def show(turns: Sequence[dict[str, Measured]], shape: Shape, plan: str) -> Table:
    """Medians, and the median of the ratios to trireme within each round."""
    title = f"{shape.about}; plan {plan}; medians of {len(turns)} rounds; in brackets: over trireme's"
    table = Table("", *TITLES.values(), "loss", title=title)
    for peer in turns[0]:
        row = [f"{peer} {version(peer)}"]
        for name in TITLES:
            value = statistics.median(getattr(turn[peer], name) for turn in turns)
            shown = f"{value:.0f}" if value >= 100 else f"{value:.2f}"
            ours = [getattr(turn[TRIREME], name) for turn in turns]
            if peer != TRIREME and all(each > 0.05 for each in ours):  # a stall may be nothing
                ratios = [getattr(turn[peer], name) / own for turn, own in zip(turns, ours, strict=True)]
                shown += f" ({statistics.median(ratios):.2f})"
            row.append(shown)
        table.add_row(*row, f"{turns[0][peer].loss:.4f}")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--plan", choices=PEERS[TRIREME], default="ddp")
    parser.add_argument("--peers", help="comma separated; trireme is always there")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    shape, plan = SHAPES[options.shape], options.plan
    able = [
        peer
        for peer, plans in PEERS.items()
        if plan in plans and (shape.device == "cuda" or plan not in ON_GPU_ALONE.get(peer, ()))
    ]
    if unknown := set((options.peers or TRIREME).split(",")) - PEERS.keys():
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; known are {', '.join(PEERS)}")
    asked = [TRIREME, *(options.peers.split(",") if options.peers else shape.peers or able)]
    peers = [peer for peer in able if peer in asked]
    with tempfile.TemporaryDirectory(prefix="peers") as name:
        folder = Path(name)
        prepare(folder, shape)
        for peer in peers:  # what is compiled or prepared once is not measured
            run(peer, plan, folder, shape)
        turns = [
            {peer: run(peer, plan, folder, shape) for peer in peers}
            for _ in track(range(options.rounds), "rounds", console=Console(stderr=True))
        ]
        shutil.rmtree(folder, ignore_errors=True)
    Console(width=None if sys.stdout.isatty() else 160).print(show(turns, shape, plan))
    if shape.lora is None:
        _refuse_other_losses(turns[0], TOLERANCE[shape.precision])


def _refuse_other_losses(turn: dict[str, Measured], tolerance: float) -> None:
    """Exit if the losses at the end differ, since such runs cannot be compared. Adapters are not checked, since each
    library draws their first values itself."""
    ours = turn[TRIREME].loss
    others = [f"{peer} {each.loss:.6f}" for peer, each in turn.items() if abs(each.loss / ours - 1) > tolerance]
    if others:
        raise SystemExit(f"the losses differ: trireme {ours:.6f}, {', '.join(others)}")


if __name__ == "__main__":
    main()
