"""Samples of conversations with images or audio clips, for models that read each image or clip as several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from ....errors import Problem, UserError
from ....models.facts import Facts
from ..base_collator import Sample
from ..document_source import SOURCE
from ..media_files import MediaFiles
from ..processor_folder import FIELD, NEEDED, no_processor, no_template
from ..processors import loaded, processor_folder
from ..samples import Given, MadeRows
from .chat_config import ChatConfig
from .chat_rows import Chats
from .chat_tokenizer import chat_vocabulary, prepared_tokenizer
from .conversation import WITH_IMAGES, WITH_MEDIA, columns_problem, conversation_of
from .media import IMAGE, KINDS, Kind, kinds_in, named
from .media_encoder import MediaEncoder, kinds_of, token_id, token_of

if TYPE_CHECKING:
    from datasets import Dataset


class MultimodalChats(Chats):
    """Conversations whose messages hold images, audio clips or both, in themselves or in columns of the row. Every
    conversation has the same kinds of media as the first one, so that all ranks use the same parts of the model."""

    columns: ClassVar[dict[str, bool]] = WITH_MEDIA
    made_of: ClassVar[dict[str, str]] = {"input_ids": "chat", "pixel_values": "images", "input_features": "audio"}
    kinds: ClassVar[tuple[Kind, ...]] = KINDS
    """The kinds of media that conversations may hold."""
    encoder: MediaEncoder

    def __init__(self, given: Given) -> None:
        self.chat = given.config.chat or ChatConfig()
        if problems := columns_problem(given.rows.column_names, SOURCE):
            raise UserError(*problems)
        self.processor = _processor(given, self.kinds)
        tokenizer = self.processor.tokenizer
        tokenizer.chat_template = tokenizer.chat_template or getattr(self.processor, "chat_template", None)
        able = [kind for kind in self.kinds if kind in kinds_of(self.processor)]
        if tokenizer.chat_template is None and self.chat.template is None:
            raise UserError(no_template({kind: token_of(self.processor, kind) for kind in able}))
        self.processor.tokenizer = tokenizer = prepared_tokenizer(tokenizer, self.chat)
        self.processor.chat_template = tokenizer.chat_template
        self.length = self.block_size = given.config.block_size
        self.cache, self.processes = given.cache, given.config.num_proc
        used = self.used(given.rows, able)
        _refuse_other_tokens(self.processor, given.model, used)
        self.encoder = MediaEncoder(self.processor, self.chat, self.block_size, used)
        self.facts = Facts(chat_vocabulary(tokenizer, self.chat))

    def used(self, rows: Dataset, able: Sequence[Kind]) -> Sequence[Kind]:
        """The kinds of media in the first row that holds any; if no row does, the first kind that the model reads.

        Args:
            able: the kinds of media that the processor reads.
        """
        for row in rows:
            with suppress(ValueError):  # the row is refused later, as is one with another kind
                messages = conversation_of(row, roles=self.chat.role_names).messages  # type: ignore[arg-type]
                if found := kinds_in(messages, able):
                    return found
        return able[:1]

    def made(self, rows: Dataset, name: str, key: str) -> MadeRows:
        from datasets import concatenate_datasets

        from .prepare_chats import PLACE

        made = super().made(rows, name, key)
        if not len(rows):
            return made
        raw = rows.select(made.rows[PLACE])
        joined = concatenate_datasets([made.rows.remove_columns(PLACE), raw], axis=1)
        return MadeRows(joined, made.notes, made.lengths, made.digest, made.files)

    def media_files(self, rows: Dataset) -> MediaFiles:
        return MediaFiles(path for row in rows for path in self.encoder.files(row))  # type: ignore[arg-type]

    def sample(self, row: dict[str, Any]) -> Sample:
        found = super().sample(row)
        return {**found, **self.encoder.arrays(self.encoder.opened(row), found["input_ids"])}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"chat": self.processor.tokenizer.decode(row["input_ids"])} if "input_ids" in row else super().show(row)


class ImageChats(MultimodalChats):
    """Conversations whose messages hold images, in themselves or in a column of the row."""

    columns: ClassVar[dict[str, bool]] = WITH_IMAGES
    kinds = (IMAGE,)


def _refuse_other_tokens(processor: Any, model: Any, kinds: Sequence[Kind]) -> None:
    """Refuse a processor whose tokens of media are not those at which the model puts what it makes of images and clips.

    Args:
        model: the model's configuration.

    Raises:
        UserError: the ids of a token differ.
    """
    for kind in kinds:
        names = (f"{kind.name}_token_id", f"{kind.name}_token_index")
        field, wanted = next(
            ((name, value) for name in names if isinstance(value := getattr(model, name, None), int)), ("", None)
        )
        if wanted is not None and (own := token_id(processor, kind)) != wanted:
            why = (
                f"is of another model: its token of an {kind.one}, {token_of(processor, kind)}, has the id {own}, and "
            )
            why += f"the model's {field} is {wanted}"
            fix = f"{NEEDED}, or set model.config.{field}={own} for a model that begins with random weights"
            raise UserError(Problem(FIELD, why, fix))


def _processor(given: Given, kinds: Sequence[Kind]) -> Any:
    """The processor of texts and media that the recipe names, or that of the weights.

    Raises:
        UserError: there is no processor, or it puts none of ``kinds`` among tokens.
    """
    from ..media_processor import MediaProcessor

    folder = processor_folder(given, made=False)
    if folder is None:
        raise UserError(no_processor(kinds))
    processor = loaded(MediaProcessor, folder, FIELD, f"{NEEDED}, whole and as the model's authors published it")
    if not set(kinds) & set(kinds_of(processor)):
        tokens = ", ".join(f"{kind.name}_token" for kind in kinds)
        why = f"names a {type(processor).__name__}, which puts no {named(kinds, 'or')} among tokens ({tokens})"
        models = "SmolVLM or LLaVA" if len(kinds) == 1 else "SmolVLM, LLaVA or Qwen2-Audio"
        raise UserError(Problem(FIELD, why, f"name the processor of a model such as {models}", str(folder)))
    return processor
