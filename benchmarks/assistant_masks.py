"""Compare which tokens of a chat get labels in trireme and in TRL (``assistant_only_loss``).

TRL ships the chat templates of published models. For many it also has a copy with ``{% generation %}`` blocks, which it
trains with instead. Each pair of templates is tried with several conversations: tools, thinking, empty answers, white
space, emoji. Three sides are compared by the texts of their labels: TRL's SFTTrainer, trireme with TRL's copy, and
trireme with the published template, which has no blocks.

    python benchmarks/assistant_masks.py                     # ten minutes on one core
    python benchmarks/assistant_masks.py llama3 qwen3

TRL is imported from ``build/trl`` (``trl_folder.py``): pip install --no-deps --target build/trl trl==1.16.0
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from trl_folder import add_trl

ROOT = Path(__file__).parents[1]
CONTROL = re.compile(r"<[|｜/a-zA-Z_][^<>\s'\"{}]*>|\[/?[A-Z_]+\]")
"""Control tokens in the text of a template."""
OF_IMAGES = ("idefics3", "llava_next", "smolvlm")
"""Templates that are left out, since they read contents as lists of images and texts."""
COPY = "_training.jinja"
"""End of the names of TRL's copies."""
Learnt = list[str] | str
"""The text of each run of labels, or why the conversation is refused."""


def conversations() -> dict[str, dict[str, Any]]:
    from helpers.chats import CALL, TOOLS, answer, user

    result = {"role": "tool", "name": "weather", "tool_call_id": "abc123456", "content": "rainy גשם"}
    called = [user("And the weather?"), answer("", tool_calls=[CALL]), result, answer("Rain.")]
    thought = [user("a"), answer("Yes.", reasoning_content="R1"), user("b"), answer("No.", reasoning_content="R2")]
    found = {
        "one answer": [user("q 1?"), answer("One two.")],
        "several": [user("q 1?"), answer("One 漢 two."), user("q 2"), answer("Three!"), user("q"), answer("Ça va")],
        "system": [{"role": "system", "content": "Be brief."}, user("q 1?"), answer("One two.")],
        "white space": [user("  q\n"), answer("  One\n\n* two\t "), user("q"), answer("\n\nsí\n")],
        "empty answer": [user("q"), answer(""), user("q"), answer("x y")],
        "emoji": [user("q"), answer("Hi 😀"), user("q"), answer("Bye 👩‍👩‍👧")],
        "tools": called,
        "thinking": thought,
    }
    return {name: {"messages": each, **({"tools": TOOLS} if each is called else {})} for name, each in found.items()}


def tokenizer_with(template: str) -> Any:
    """A small tokenizer with the template and its control tokens; eos is the token that it writes after an answer."""
    from helpers.chats import small_tokenizer
    from trireme.trainer.data.chat.chat_tokenizer import add_control_tokens

    tokenizer = copy.deepcopy(small_tokenizer())
    add_control_tokens(tokenizer, list(dict.fromkeys(CONTROL.findall(template))))
    tokenizer.bos_token, tokenizer.chat_template, tokenizer.split_special_tokens = "<s>", template, False
    messages = [{"role": role, "content": f"{role} text"} for role in ("user", "assistant")] * 2
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    stop = CONTROL.search(text, text.find("assistant text") + len("assistant text"))
    tokenizer.eos_token = tokenizer.pad_token = stop.group() if stop else "</s>"
    return tokenizer


def by_trireme(tokenizer: Any, row: dict[str, Any]) -> Learnt:
    from trireme.models.loss import IGNORE
    from trireme.trainer.data.chat.chat_config import ChatConfig
    from trireme.trainer.data.chat.chat_encoder import ChatEncoder

    try:
        chat = ChatEncoder(tokenizer, ChatConfig())(copy.deepcopy(row))
    except ValueError as error:
        return str(error)
    return runs(tokenizer, chat.input_ids.tolist(), (chat.labels != IGNORE).tolist())


def by_trl(tokenizer: Any, row: dict[str, Any]) -> Learnt:
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"output_dir": folder, "report_to": "none", "use_cpu": True, "bf16": False}
        config = SFTConfig(**options, assistant_only_loss=True, max_length=None, eos_token=tokenizer.eos_token)
        data = Dataset.from_list([copy.deepcopy(row)])
        try:
            made: Any = SFTTrainer(model, config, train_dataset=data, processing_class=copy.deepcopy(tokenizer))
        except Exception as error:  # the trainer and the template raise errors of many types
            return str(error)
        sample = made.train_dataset[0]
    return runs(tokenizer, sample["input_ids"], [label != -100 for label in sample["labels"]])


def runs(tokenizer: Any, tokens: Sequence[int], learnt: Sequence[bool]) -> list[str]:
    """The text of each run of consecutive tokens that are learnt."""
    found: list[list[int]] = []
    for before, token, own in zip([False, *learnt], tokens, learnt, strict=False):
        if own and not before:
            found.append([])
        if own:
            found[-1].append(token)
    return [tokenizer.decode(each) for each in found]


def compared(ours: Learnt, theirs: Learnt) -> str:
    """In what the labels of two sides differ, in a few words."""
    if isinstance(ours, str) or isinstance(theirs, str):
        sides = ["both"] * (isinstance(ours, str) and isinstance(theirs, str))
        return f"refused by {(sides or ['trireme' if isinstance(ours, str) else 'TRL'])[0]}"
    if ours == theirs:
        return "equal"
    if len(ours) == len(theirs) and all(one in other for one, other in zip(ours, theirs, strict=True)):
        return "TRL has more in each answer"
    return "differ"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("templates", nargs="*", help="names (default: all that TRL has a copy of)")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(ROOT / "tests"))
    trl = add_trl()
    import datasets

    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    folder, counts = trl / "trl" / "chat_templates", {"copy": Counter(), "published": Counter()}
    for file in sorted(folder.glob(f"*{COPY}")):
        name = file.name.removesuffix(COPY)
        if name in OF_IMAGES or (options.templates and name not in options.templates):
            continue
        published = tokenizer_with((folder / f"{name}.jinja").read_text(encoding="utf-8"))
        with_blocks = copy.deepcopy(published)
        with_blocks.chat_template = file.read_text(encoding="utf-8")
        for kind, row in conversations().items():
            theirs = by_trl(published, row)
            sides = {"copy": by_trireme(with_blocks, row), "published": by_trireme(published, row)}
            for side, ours in sides.items():
                word = compared(ours, theirs)
                counts[side][word] += 1
                if word not in ("equal", "TRL has more in each answer", "refused by both"):
                    print(f"{name}, {kind}, {side}: {word}\n  trireme: {ours!r}\n  TRL:     {theirs!r}", flush=True)
    for side, found in counts.items():
        print(
            f"trireme with the {side} template: " + ", ".join(f"{count} {word}" for word, count in found.most_common())
        )


if __name__ == "__main__":
    main()
