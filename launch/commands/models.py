"""``trireme models``: list model families, and the named model configurations (``model=NAME``)."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  trireme models
  trireme train pretrain/persimmon_stdlib model=llama_tiny run.dir=runs/llama     # a preset
  trireme train finetune/text model.weights=FOLDER_OR_HUB_ID "data.source.paths=[corpus/*.txt]"
"""


def run(options: argparse.Namespace) -> None:
    from ..listing import show_models

    show_models()


COMMAND = Command("models", "", "list model families, and presets of their sizes", run, examples=EXAMPLES)
