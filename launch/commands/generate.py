"""``trireme generate``: generate text with a model, a checkpoint or a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..command import Command
from ..recipe_arguments import add_debug

if TYPE_CHECKING:
    from ..chat_prompt import ChatPrompt

EXAMPLES = """examples:
  trireme generate runs/persimmon_stdlib --prompt "def main("
  trireme generate exported --prompt "import " --temperature 0 --max-new-tokens 50
  trireme generate adapter --prompt "import " --base models/llama   # an adapter as peft writes it
  trireme generate exported --chat --prompt "What is an oar?"
  trireme generate exported --chat messages.json --temperature 0
  trireme generate exported --chat --prompt "What is this?" --image boat.png
  trireme generate exported --chat --prompt "What is said?" --audio clip.wav
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an exported folder, a checkpoint, a run folder, or an adapter")
    _text_arguments(parser)
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="most tokens to write (default: 100, or as many as fit)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="T",
        help="temperature of sampling; 0 always takes the likeliest token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="K", help="sample from the K likeliest tokens; 0: from all (default: 50)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text (default: 0)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of a checkpoint")
    parser.add_argument(
        "--base",
        metavar="FOLDER",
        help="folder of the adapters' base, if it is no longer where the run or peft's folder names it",
    )
    parser.add_argument(
        "--device-map",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
        help="spread the model over GPUs, CPU and disk, as accelerate does",
    )
    add_debug(parser)


def _text_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments for what the model reads: a text, or a conversation with images and audio clips."""
    parser.add_argument("--prompt", metavar="TEXT", help="how the text begins (required without --chat)")
    parser.add_argument(
        "--chat",
        nargs="?",
        const="",
        metavar="FILE",
        help="answer a conversation, written in the model's chat template: JSON with messages and optionally tools, "
        "documents and template_args (- reads standard input); --prompt adds a message of the user",
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="an image before --prompt, for models that read images; repeat it for several. Without --prompt: the file "
        "of an image in FILE's messages that has no path",
    )
    parser.add_argument(
        "--audio",
        action="append",
        default=[],
        metavar="FILE",
        help="an audio clip before --prompt, for models that read audio; otherwise as --image",
    )
    parser.add_argument("--system", metavar="TEXT", help="system message, if the conversation has none")
    parser.add_argument(
        "--continue-final-message",
        action="store_true",
        help="continue the last message of the conversation (the default if it is the assistant's)",
    )
    parser.add_argument(
        "--add-generation-prompt",
        action="store_true",
        help="begin a new message even after one of the assistant; not together with --continue-final-message",
    )


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError

    if options.prompt is None and options.chat is None:
        fix = f'for example: trireme generate {options.model} --prompt "def main("'
        raise UserError(Problem("--prompt", "is required: how the text begins", fix))
    prompt: str | ChatPrompt = str(options.prompt) if options.chat is None else _chat(options)
    for name in ("system", "image", "audio", "continue_final_message", "add_generation_prompt"):
        if options.chat is None and getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(Problem(option, "is only for conversations", "add --chat, or leave it out"))
    if options.top_k is not None and options.temperature == 0:
        why = "limits the tokens to sample from, but --temperature 0 does not sample"
        raise UserError(Problem("--top-k", why, "leave one of them out", options.top_k))
    if options.seed is not None and options.temperature == 0:
        why = "chooses the random numbers of sampling, but --temperature 0 does not sample"
        raise UserError(Problem("--seed", why, "leave one of them out", options.seed))
    from ..generate_text import generate
    from ..start_process import prepare_process

    prepare_process()
    text = generate(
        options.model,
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=50 if options.top_k is None else options.top_k,
        seed=options.seed or 0,
        ema=options.ema,
        device_map=options.device_map,
        base=options.base,
    )
    print(text)


def _chat(options: argparse.Namespace) -> ChatPrompt:
    from ..chat_prompt import chat_prompt, trained_chat

    new = True if options.add_generation_prompt else None
    goes_on = options.continue_final_message
    trained = trained_chat(options.model)
    file, images, audio = options.chat or None, options.image, options.audio
    return chat_prompt(file, options.prompt, options.system, goes_on, new, images, trained, audio)


COMMAND = Command(
    "generate",
    "MODEL",
    "generate text with a model, checkpoint or run",
    run,
    arguments,
    description="Generate text with an exported folder, a checkpoint, a run folder, or an adapter of peft.",
    examples=EXAMPLES,
)
