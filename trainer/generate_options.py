"""Choose the options of ``trireme generate`` that are shown for a trained model: ``--chat`` for chats, and ``--image``
or ``--audio`` for models that read images or audio clips.
"""

from __future__ import annotations

from pathlib import Path

from ..models.json_file import object_in
from .data.chat.media import AUDIO, IMAGE
from .data.processor_folder import FILES

PARTS = {IMAGE: "image_processor", AUDIO: "feature_extractor"}
"""Kind of media -> the part of a processor that reads it, by which its settings are named in files."""


def generate_options(chat: bool, model: Path) -> str:
    """Options as a user types them, with FILE and "..." for values.

    Args:
        chat: whether the model was trained on chats.
        model: folder with the model's configuration, and with the settings of its processor if it has one.
    """
    if not chat:
        return '--prompt "..."'
    settings = [found for file in FILES if (found := object_in(model / file))]
    kinds = [kind for kind, part in PARTS.items() if any(part in each or f"{part}_type" in each for each in settings)]
    return " ".join(["--chat", *(f"--{kind.name} FILE" for kind in kinds), '--prompt "..."'])
