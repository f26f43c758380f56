"""``trireme generate``: generate text with a model, a checkpoint or a run."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_debug

EXAMPLES = """examples:
  trireme generate runs/persimmon_stdlib --prompt "def main("
  trireme generate exported --prompt "import " --temperature 0 --max-new-tokens 50
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an exported folder, a checkpoint or a run folder")
    parser.add_argument("--prompt", metavar="TEXT", help="how the text begins (required)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=100, metavar="N", help="tokens that are written (default: 100)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="0 takes the likeliest token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k", type=int, default=50, metavar="K", help="draw from the K likeliest tokens; 0: from all (default: 50)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed gives the same text")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of a checkpoint")
    parser.add_argument(
        "--device-map",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="load piece by piece and spread the model over GPUs, CPU and disk (accelerate)",
    )
    add_debug(parser)


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError

    if options.prompt is None:
        fix = f'for example: trireme generate {options.model} --prompt "def main("'
        raise UserError(Problem("--prompt", "is required: how the text begins", fix))
    from ..enter import prepare_process
    from ..generate import generate

    prepare_process()
    text = generate(
        options.model,
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        ema=options.ema,
        device_map=options.device_map,
    )
    print(text)


COMMAND = Command(
    "generate",
    "MODEL",
    "generate text with a model, checkpoint or run",
    run,
    arguments,
    description="Generate text with an exported folder, a checkpoint, or a run folder.",
    examples=EXAMPLES,
)
