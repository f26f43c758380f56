"""Command line arguments of the subcommands that read a recipe: the recipe with its overrides, and the options and help
texts of ``train``, ``launch``, ``evaluate`` and ``predict``. Also argparse types for numbers, for all subcommands.

Only argparse is imported, so that help and tab completion are instant.
"""

from __future__ import annotations

import argparse

TRAINING_EXAMPLES = """examples:
  trireme train pretrain/persimmon_stdlib
  trireme train pretrain/persimmon_stdlib plan=ddp --nproc 2 optimizer.lr=1e-3
  trireme train my/recipe.yaml --cfg job
  torchrun --nproc-per-node 2 -m trireme.launch.train pretrain/persimmon_stdlib plan=ddp
  deepspeed --module trireme.launch.train pretrain/persimmon_stdlib plan=zero2
  accelerate launch -m trireme.launch.train pretrain/persimmon_stdlib
"""
EVALUATION = """Print a recipe's held-out metrics. Weights: --checkpoint, else the newest checkpoint of the run folder,
else model.weights."""
EVALUATION_EXAMPLES = """examples:
  trireme evaluate pretrain/persimmon_stdlib
  trireme evaluate pretrain/persimmon_stdlib plan=zero3 --nproc 2 --checkpoint runs/persimmon_stdlib --json
  torchrun --nproc-per-node 2 -m trireme.launch.evaluate pretrain/persimmon_stdlib plan=zero3
"""
PREDICTION = """Write what a trained model says of each sample of a set into one file: labels with probabilities, texts.
Weights: --checkpoint, else the newest checkpoint of the run folder, else model.weights."""
PREDICTION_EXAMPLES = """examples:
  trireme predict my/recipe.yaml --out predictions.jsonl
  trireme predict my/recipe.yaml plan=ddp --nproc 2 --on test --out predictions.parquet
  torchrun --nproc-per-node 2 -m trireme.launch.predict my/recipe.yaml plan=ddp --out predictions.jsonl
"""


LONGEST = 10**9
"""Most seconds that a command waits."""
DIGITS = 18
"""Most digits of a number that surely fits into 64 bits."""


def count(text: str) -> int:
    """A whole number from 0, as a type for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number; write 0 or more")
    return _within(text)


def positive(text: str) -> int:
    """A whole number from 1, as a type for argparse."""
    if not text.isdecimal() or _within(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1; write 1 or more")
    return int(text)


def seconds(text: str) -> float:
    """A time in seconds from 0, as a type for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= LONGEST:  # nor nan
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds; write 0 or more, such as 600")
    return value


def _within(text: str) -> int:
    """The number in ``text``; refused if it may not fit into 64 bits."""
    if len(text) > DIGITS:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; write fewer than {DIGITS + 1} digits")
    return int(text)


def add_recipe_arguments(parser: argparse.ArgumentParser, required: bool = True, processes: bool = True) -> None:
    """Add the arguments of every command that reads a recipe; ``processes``: also the number of processes."""
    about = "name (see: trireme recipes) or path of a .yaml file"
    parser.add_argument("recipe", metavar="RECIPE", nargs=None if required else "?", help=about)
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", default=[], help="values and choices that replace the recipe's"
    )
    if processes:
        about = "processes (default: what the plan needs, or all GPUs)"
        parser.add_argument("--nproc", type=int, metavar="N", help=about)
    add_recipe_dir(parser)
    add_debug(parser)


def add_recipe_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe-dir", action="append", default=[], metavar="DIR", help="a folder with recipes of your own"
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_accelerate_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--accelerate-config", metavar="FILE", help="take plan and processes from a configuration of accelerate"
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``train`` and ``launch``."""
    add_recipe_arguments(parser)
    add_accelerate_argument(parser)
    # Some launchers, such as DeepSpeed's, also pass the local rank here; it is ignored in favour of LOCAL_RANK.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="checkpoint to continue from (default: auto, the newest of the run folder)",
    )
    parser.add_argument("--fresh", action="store_true", help="move an existing run folder aside and start over")
    parser.add_argument(
        "--max-restarts",
        type=count,
        default=0,
        metavar="N",
        help="start all ranks again, from the last checkpoint, up to N times after one has failed",
    )
    parser.add_argument("--multirun", "-m", action="store_true", help="one run for every combination of key=a,b")
    hydra = parser.add_argument_group("look, don't train (Hydra)")
    hydra.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed recipe")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    hydra.add_argument("--package", "-p", metavar="KEY", help="with --cfg: print one part")
    hydra.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        metavar="all|defaults|defaults-tree|searchpath|plugins|config",
        choices=("all", "defaults", "defaults-tree", "searchpath", "plugins", "config"),
        help="print where the recipe's parts come from",
    )


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``evaluate``."""
    _add_weights_arguments(parser)
    parser.add_argument(
        "--on", metavar="SET", help="held_out, a name in data.eval_sets, or test (default: all but test)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def add_prediction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``predict``."""
    _add_weights_arguments(parser)
    parser.add_argument(
        "--on", default="held_out", metavar="SET", help="held_out (the default), a name in data.eval_sets, or test"
    )
    parser.add_argument(
        "--out", default="predictions.jsonl", metavar="FILE", help=".jsonl or .parquet (default: predictions.jsonl)"
    )
    parser.add_argument("--limit", type=count, metavar="N", help="predict the first N samples (default: all)")


def _add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--checkpoint", metavar="PATH", help="a checkpoint, or a run folder (its newest checkpoint)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of the checkpoint")
