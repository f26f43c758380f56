"""Make the tokens and labels of a conversation with images, where each image takes the place of many tokens.

The chat template writes one placeholder token for each image. Labels are found on this text, as in any conversation.
Then each placeholder is replaced by the tokens that the model's processor gives for the image; these have no labels. As
a check, the first conversation is also encoded as a whole by the processor, and both results must be equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....models.loss import IGNORE
from ..content_stamp import hash_json
from ..image_rows import opened_image
from .chat_config import ChatConfig
from .chat_encoder import ChatEncoder, EncodedChat
from .conversation import IMAGES, Conversation, conversation_of, is_picture

RGB = 3


def pictures_of(conversation: Conversation, row: Mapping[str, Any]) -> list[Any]:
    """The images of a row's messages in order, as the row stores them: paths, bytes, or Pillow images.

    Raises:
        ValueError: an image is missing, is left over, or is an address.
    """
    given = row.get(IMAGES) or []
    left = list(given if isinstance(given, list) else [given])
    found = []
    for message in conversation.messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if is_picture(part):
                found.append(_stored(part) or (left.pop(0) if left else None))
                if found[-1] is None:
                    raise ValueError(f"it has {len(found)} images in its messages, and the column {IMAGES} fewer")
    if left:
        raise ValueError(f"the column {IMAGES} holds {len(left)} images more than its messages")
    return found


def _stored(part: Mapping[str, Any]) -> Any:
    url = part.get("url") or part.get("image_url")
    stored = part.get("image") or part.get("path") or (url.get("url") if isinstance(url, Mapping) else url)
    if isinstance(stored, str) and stored.startswith(("http:", "https:", "data:")):
        raise ValueError("one of its images is an address; store the image, and give its path")
    return stored


class PictureEncoder(ChatEncoder):
    """Encodes conversations whose messages may hold images."""

    pictures = True

    def __init__(self, processor: Any, tokenizer: Any, config: ChatConfig, longest: int) -> None:
        """
        Args:
            processor: a processor of transformers for images and texts.
            tokenizer: the tokenizer of this processor, with the chat template.
            longest: tokens of the longest conversation; an image is never cut.
        """
        super().__init__(tokenizer, config)
        self.processor, self.longest = processor, longest
        self.token = int(tokenizer.convert_tokens_to_ids(processor.image_token))
        self._compared = False

    def __call__(self, row: Mapping[str, Any]) -> EncodedChat:
        encoded, pictures = super().__call__(row), self.opened(row)
        places = np.flatnonzero(encoded.input_ids == self.token)
        if len(places) != len(pictures):
            many = f"{len(pictures)} images, and the template shows {len(places)}"
            raise ValueError(f"its messages hold {many} ({self.processor.image_token})")
        if not pictures:
            return encoded
        whole = _expanded(encoded, places, [self.tokens_of(image) for image in pictures])
        if not self._compared:
            self._compare(encoded.text, pictures, whole)
        if (last := int(np.flatnonzero(whole.input_ids == self.token)[-1])) >= self.longest:
            raise ValueError(f"its images end at token {last + 1}, beyond data.block_size={self.longest}")
        return whole

    @property
    def made_by(self) -> str:
        return hash_json([super().made_by, self.longest, str(self.processor.to_dict())])

    def opened(self, row: Mapping[str, Any]) -> list[Any]:
        """The images of a row, opened."""
        found = conversation_of(row, self.config.system, self.tools, roles=self.config.role_names)
        return [opened_image(stored, RGB) for stored in pictures_of(found, row)]

    def tokens_of(self, image: Any) -> np.ndarray:
        """The tokens that an image stands for (int64)."""
        return self._processed(self.processor.image_token, [image])

    def _processed(self, text: str, pictures: Sequence[Any]) -> np.ndarray:
        made = self.processor(text=[text], images=[list(pictures)], add_special_tokens=False)
        return np.asarray(made["input_ids"][0], np.int64).reshape(-1)

    def _compare(self, text: str, pictures: Sequence[Any], found: EncodedChat) -> None:
        self._compared = True
        if not np.array_equal(self._processed(text, pictures), found.input_ids):
            raise ValueError("the processor makes other tokens of the whole text than of its parts")


def _expanded(encoded: EncodedChat, places: np.ndarray, tokens: Sequence[np.ndarray]) -> EncodedChat:
    """The conversation in which each placeholder token is replaced by the tokens of its image."""
    sizes = np.ones(len(encoded.input_ids), np.int64)
    sizes[places] = [len(each) for each in tokens]
    begins = np.cumsum(sizes) - sizes
    ids, labels = np.repeat(encoded.input_ids, sizes), np.repeat(encoded.labels, sizes)
    for place, each in zip(places, tokens, strict=True):
        part = slice(begins[place], begins[place] + len(each))
        ids[part], labels[part] = each, IGNORE
    stops = tuple(int(begins[place]) for place in encoded.stops)
    return replace(encoded, input_ids=ids, labels=labels, stops=stops)
