"""Test data for chats: templates, a small tokenizer with their control tokens, and messages in several languages. Tests
check with it which tokens of a conversation a model learns.
"""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from trireme.models.loss import IGNORE
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.chat_encoder import ChatEncoder, EncodedChat
from trireme.trainer.data.chat.chat_tokenizer import add_control_tokens
from trireme.trainer.data.chat.named_templates import named_template
from trireme.trainer.data.tokenizer import TokenizerConfig, train_tokenizer


def _corpus() -> dict[str, dict[str, Any]]:
    """The entries of ``chat_templates.yaml`` by name; entries that name a packaged template get its text."""
    forms = yaml.safe_load((Path(__file__).parent / "chat_templates.yaml").read_text(encoding="utf-8"))
    for name, form in forms.items():
        if "template" not in form:
            form["template"] = named_template(form.pop("of", name)).text
    return forms


TEMPLATES = _corpus()
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "מזג האוויר",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALL = {"type": "function", "id": "abc123456", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
ANSWERS = ("  Hi 漢字 😀👩‍👩‍👧\n\n* one\t two  ", "Ça va: naïve ÅÄÖ; ok!", "", "\n\nsí\n", "日本語のテキスト。")
"""Texts of assistants; users write in Cyrillic, system messages are in Greek, descriptions of tools in Hebrew."""
OTHERS = "абвгдежзийклмнопрстуфхцчшщьыъэюяαβγδεζηθικλμνξοπρστυφχψωאבגדהוזחטיכלמנסעפצקרשת"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@lru_cache
def small_tokenizer() -> Any:
    """A byte-level BPE of 600 tokens, trained in milliseconds."""
    return train_tokenizer(
        TokenizerConfig(vocab_size=600), lambda: ["How are you? I am well, thanks; and the weather is fine."] * 20
    )


def tokenizer_for(name: str, base: Any = None) -> Any:
    """A tokenizer with a template of ``TEMPLATES`` and its control tokens."""
    form = TEMPLATES[name]
    tokenizer = copy.deepcopy(base if base is not None else small_tokenizer())
    add_control_tokens(tokenizer, form["control"])
    tokenizer.eos_token = form.get("eos") or form["stop"] or form["control"][-1]
    if "bos" in form:
        tokenizer.bos_token = form["bos"]
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = form["template"]
    return tokenizer


def encoder_for(name: str, base: Any = None, **options: Any) -> ChatEncoder:
    """The encoder for a template of ``TEMPLATES``."""
    form = TEMPLATES[name]
    own = {
        "template_args": form.get("args", {}),
        "stop_tokens": form.get("stops", []),
        "tool_arguments": form.get("arguments", "object"),
    }
    return ChatEncoder(tokenizer_for(name, base), ChatConfig(**{**own, **options}))


def runs(encoder: ChatEncoder, chat: EncodedChat) -> list[str]:
    """The text of each run of consecutive tokens that are learnt."""
    learnt = chat.labels != IGNORE
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learnt.astype(int), [0]])))
    decode = encoder.encoder.tokenizer.decode
    return [decode(chat.input_ids[start:end]) for start, end in edges.reshape(-1, 2)]
