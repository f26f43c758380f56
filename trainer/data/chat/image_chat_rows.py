"""Training samples for chats with images, for models that represent each image by a number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ....errors import Problem, UserError
from ....models.facts import Facts
from ..base_collator import Sample
from ..document_source import SOURCE
from ..processors import FIELD, loaded, processor_folder
from ..samples import Given, MadeRows
from .chat_config import ChatConfig
from .chat_rows import Chats
from .chat_tokenizer import chat_vocabulary, prepared_tokenizer
from .conversation import IMAGES, PICTURED, columns_problem
from .pictures import PictureEncoder

if TYPE_CHECKING:
    from datasets import Dataset

OF_TEXTS = ("input_ids", "attention_mask", "token_type_ids", "labels")
"""Outputs of a processor that belong to the text, not to the images."""


class PicturedChats(Chats):
    """Conversations with images in their messages, or in a column beside them."""

    columns: ClassVar[dict[str, bool]] = PICTURED
    made_of: ClassVar[dict[str, str]] = {"input_ids": "chat", "pixel_values": IMAGES}

    def __init__(self, given: Given) -> None:
        self.chat = given.config.chat or ChatConfig()
        if problems := columns_problem(given.rows.column_names, SOURCE):
            raise UserError(*problems)
        self.processor = _processor(given)
        tokenizer = self.processor.tokenizer
        tokenizer.chat_template = tokenizer.chat_template or getattr(self.processor, "chat_template", None)
        self.processor.tokenizer = tokenizer = prepared_tokenizer(tokenizer, self.chat)
        self.processor.chat_template = tokenizer.chat_template
        self.length = self.block_size = given.config.block_size
        self.cache, self.processes = given.cache, given.config.num_proc
        self.encoder: PictureEncoder = PictureEncoder(self.processor, tokenizer, self.chat, self.block_size)
        self.facts = Facts(chat_vocabulary(tokenizer, self.chat))

    def made(self, rows: Dataset, name: str, key: str) -> MadeRows:
        from datasets import concatenate_datasets

        from .prepare_chats import PLACE

        made = super().made(rows, name, key)
        if not len(rows):
            return made
        raw = rows.select(made.rows[PLACE])
        joined = concatenate_datasets([made.rows.remove_columns(PLACE), raw], axis=1)
        return MadeRows(joined, made.notes, made.lengths, made.digest)

    def sample(self, row: dict[str, Any]) -> Sample:
        found = super().sample(row)
        pictures = self.encoder.opened(row)
        if not pictures:
            raise ValueError("it has no image, and the model reads one with every text of a batch")
        text = self.processor.image_token * len(pictures)
        seen = self.processor(text=[text], images=[pictures], return_tensors="np", add_special_tokens=False)
        return {**found, **{name: np.asarray(seen[name]) for name in seen if name not in OF_TEXTS}}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"chat": self.processor.tokenizer.decode(row["input_ids"])} if "input_ids" in row else super().show(row)

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return super().lengths(rows)


def _processor(given: Given) -> Any:
    """The processor of images and texts that the recipe or the weights name.

    Raises:
        UserError: there is none that writes images among tokens.
    """
    from transformers import AutoProcessor

    folder = processor_folder(given)
    if folder is None:
        why = "is needed: only a processor of the model says which tokens an image stands for"
        raise UserError(Problem(FIELD, why, "name a folder or a hub id with a processor_config.json"))
    processor = loaded(AutoProcessor, folder, FIELD, backend="pil")
    if not all(hasattr(processor, name) for name in ("tokenizer", "image_processor", "image_token")):
        why = f"names a {type(processor).__name__}, which has no token for an image (image_token)"
        raise UserError(Problem(FIELD, why, "name the processor of a model such as SmolVLM or LLaVA", str(folder)))
    return processor
