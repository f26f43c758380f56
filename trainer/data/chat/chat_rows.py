"""Training samples for chat data: the tokens of a conversation, with labels only on the tokens to train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ....errors import UserError
from ....models.facts import Facts
from ..base_collator import Sample
from ..document_source import SOURCE
from ..samples import Given, MadeRows, Samples
from .chat_config import ChatConfig
from .chat_encoder import ChatEncoder
from .chat_tokenizer import chat_tokenizer, chat_vocabulary
from .conversation import COLUMNS, columns_problem

if TYPE_CHECKING:
    from datasets import Dataset


class Chats(Samples):
    """Conversations (``data.chat``), encoded once by the tokenizer's template."""

    columns: ClassVar[dict[str, bool]] = COLUMNS
    made_of: ClassVar[dict[str, str]] = {"input_ids": "chat"}

    def __init__(self, given: Given) -> None:
        self.chat = given.config.chat or ChatConfig()
        if problems := columns_problem(given.rows.column_names, SOURCE):
            raise UserError(*problems)
        self.processor = chat_tokenizer(given, self.chat)
        self.length = self.block_size = given.config.block_size
        self.cache, self.processes = given.cache, given.config.num_proc
        self.encoder = ChatEncoder(self.processor, self.chat)
        self.facts = Facts(chat_vocabulary(self.processor, self.chat))

    def made(self, rows: Dataset, name: str, key: str) -> MadeRows:
        from .prepare_chats import made_chats

        return made_chats(self, rows, name, key)

    def sample(self, row: dict[str, Any]) -> Sample:
        if "input_ids" in row:
            ids, labels = (np.asarray(row[name], np.int64) for name in ("input_ids", "labels"))
        else:
            encoded = self.encoder(row)
            ids, labels = encoded.input_ids, encoded.labels
        return {"input_ids": ids[: self.length], "labels": labels[: self.length]}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return super().show({"chat": self.processor.decode(row["input_ids"])} if "input_ids" in row else row)

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"tokens": rows["length"], "tokens that are learnt": rows["learnt"]}

    def longest(self) -> dict[str, float | None]:
        return {"tokens": self.length}
