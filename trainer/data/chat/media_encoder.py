"""Make the tokens and labels of a conversation with images or audio clips, each of which stands for many tokens.

The chat template writes one placeholder token for each image or clip. Labels are found in this text, as in any
conversation. Then each placeholder is replaced by the tokens that the model's processor makes of the image or clip;
these tokens have no labels. As a check, the processor also encodes the whole conversation, and both results must be
equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ....models.loss import IGNORE
from ..audio import waveform
from ..content_stamp import hash_json
from ..image_rows import opened_image
from .chat_config import ChatConfig
from .chat_encoder import ChatEncoder, EncodedChat
from .conversation import conversation_of
from .media import AUDIO, IMAGE, KINDS, Kind, media_of_kinds, named

RGB = 3
REFUSED = (ValueError, TypeError, IndexError, RuntimeError)
"""Errors that processors raise for inputs that they cannot take, such as a clip shorter than their windows."""
BESIDE = ("token_type_ids", "mm_token_type_ids")
"""Names of a processor's arrays that tell for each token whether it belongs to an image or an audio clip."""
OF_TEXTS = ("input_ids", "attention_mask", "labels", *BESIDE)
"""Names of a processor's arrays that have one number for each token."""

Media = dict[Kind, list[Any]]
"""Opened images (Pillow's) and audio clips (float32 [samples]) of a conversation, in the order of its messages."""


class MediaEncoder(ChatEncoder):
    """Encodes conversations whose messages hold images, audio clips, or both."""

    def __init__(self, processor: Any, config: ChatConfig, longest: int, media: Sequence[Kind]) -> None:
        """
        Args:
            processor: a processor of transformers, whose tokenizer has the chat template.
            longest: number of tokens to which conversations are cut. One whose last image or clip ends behind them is
                refused, because images and clips are never cut.
            media: the kinds of media that every conversation holds.
        """
        super().__init__(processor.tokenizer, config)
        self.processor, self.longest, self.media = processor, longest, tuple(media)

    def __call__(self, row: Mapping[str, Any]) -> EncodedChat:
        encoded, media = super().__call__(row), self.opened(row)
        places: dict[int, Kind] = {}
        for kind, items in media.items():
            shown = np.flatnonzero(encoded.input_ids == token_id(self.processor, kind))
            if len(shown) != len(items):
                many = f"{kind.counted(len(items))}, and the template shows {len(shown)}"
                raise ValueError(f"its messages hold {many} ({token_of(self.processor, kind)})")
            places |= dict.fromkeys(shown.tolist(), kind)
        whole, end = self._expanded(encoded, dict(sorted(places.items())), media)
        if end > self.longest:
            raise ValueError(f"its {named(self.media)} end at token {end}, beyond data.block_size={self.longest}")
        return whole

    @property
    def made_by(self) -> str:
        kinds = [kind.name for kind in self.media]
        return hash_json([super().made_by, self.longest, kinds, str(self.processor.to_dict())])

    def opened(self, row: Mapping[str, Any]) -> Media:
        """Open the images and audio clips of a row.

        Raises:
            ValueError: the row lacks a kind of ``media``, or an item cannot be read.
        """
        stored = self._stored(row)
        return {kind: [opened(self.processor, kind, item) for item in items] for kind, items in stored.items()}

    def files(self, row: Mapping[str, Any]) -> list[str]:
        """The files of a row's images and audio clips; none of a row that is not usable."""
        try:
            stored = self._stored(row)
        except ValueError:  # refused, or left out, when it is encoded
            return []
        return [item for items in stored.values() for item in items if isinstance(item, str)]

    def arrays(self, media: Media, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays that the processor makes of images and clips, beside the tokens.

        Args:
            ids: tokens of the conversation.
        """
        text = "".join(token_of(self.processor, kind) * len(items) for kind, items in media.items())
        made = processed(self.processor, text, media)
        found = {name: np.asarray(made[name]) for name in made if name not in OF_TEXTS}
        for name in set(BESIDE) & set(made):
            found[name] = np.asarray(self.processor.create_mm_token_type_ids([ids.tolist()])[0], np.int64)
        return found

    def _stored(self, row: Mapping[str, Any]) -> dict[Kind, list[Any]]:
        messages = conversation_of(row, self.config.system, self.tools, roles=self.config.role_names).messages
        return media_of_kinds(messages, row, self.media, self.config.media_folder)

    def _expanded(self, encoded: EncodedChat, places: Mapping[int, Kind], media: Media) -> tuple[EncodedChat, int]:
        """Replace the placeholder at each of ``places`` by the tokens of its image or clip.

        Returns:
            the conversation, and the number of tokens up to the end of its last image or clip.
        """
        ids = tokens_of(self.processor, encoded.text, media)
        if len(places) == 1:
            (place,) = places
            tokens = [ids[place : place + len(ids) - len(encoded.input_ids) + 1]]
        else:
            left = {kind: iter(items) for kind, items in media.items()}
            tokens = [item_tokens(self.processor, kind, next(left[kind])) for kind in places.values()]
        for kind, each in zip(places.values(), tokens, strict=True):
            refuse_tokenless(self.processor, kind, each)
        found, end = _filled(encoded, np.fromiter(places, np.int64), tokens)
        if not np.array_equal(ids, found.input_ids):
            raise ValueError("the processor makes other tokens of the whole text than of its parts")
        return found, end


def kinds_of(processor: Any) -> tuple[Kind, ...]:
    """The kinds of media that a processor of transformers puts among the tokens of a text."""
    if not hasattr(processor, "tokenizer"):
        return ()
    taken = inspect.signature(type(processor).__call__).parameters
    reads_audio = audio_extractor(processor) is not None and "audio" in taken
    able = {IMAGE: hasattr(processor, "image_processor"), AUDIO: reads_audio}
    return tuple(kind for kind in KINDS if able[kind] and token_of(processor, kind))


def token_of(processor: Any, kind: Kind) -> str:
    """The placeholder of a kind of media in the text of a template; empty if the processor has none."""
    return getattr(processor, f"{kind.name}_token", None) or ""


def token_id(processor: Any, kind: Kind) -> int:
    """Id of the placeholder token of a kind of media."""
    return int(processor.tokenizer.convert_tokens_to_ids(token_of(processor, kind)))


def audio_extractor(processor: Any) -> Any:
    """The feature extractor for audio of a processor; None if it has none."""
    return getattr(processor, "audio_processor", None) or getattr(processor, "feature_extractor", None)


def opened(processor: Any, kind: Kind, stored: Any) -> Any:
    """Open a stored image or audio clip, in the form that the processor takes.

    Raises:
        ValueError: the item cannot be read, or the processor would cut it.
    """
    if kind is IMAGE:
        return opened_image(stored, RGB)
    rate = int(audio_extractor(processor).sampling_rate)
    clip, most = waveform(stored, rate), longest_clip(processor)
    if most is not None and len(clip) > most:
        raise ValueError(f"its audio of {len(clip) / rate:.1f} s is longer than the {most / rate:g} s that fit")
    return clip


def longest_clip(processor: Any) -> int | None:
    """The number of samples of the longest audio clip that a processor takes uncut; None if it never cuts a clip."""
    extractor = audio_extractor(processor)
    if (most := getattr(processor, "max_audio_len", None)) is not None:  # seconds, in windows of its own
        window = getattr(extractor, "chunk_length", 1)
        return int(most // window * window * extractor.sampling_rate)
    given = getattr(processor, "audio_kwargs", None) or {}
    usual = {name: each.default for name, each in inspect.signature(type(extractor).__call__).parameters.items()}
    if not given.get("truncation", usual.get("truncation", False)):
        return None
    limits = [getattr(extractor, name, None) for name in ("n_samples", "nb_max_samples")]
    limits += [given.get("max_length"), usual.get("max_length")]
    return next((limit for limit in limits if isinstance(limit, int)), None)


def processed(processor: Any, text: str, media: Mapping[Kind, Sequence[Any]]) -> Any:
    """Run a processor on a text with a placeholder for each image and audio clip; returns tensors by name.

    Raises:
        ValueError: the processor refuses an input.
    """
    given: dict[str, Any] = {}
    if images := media.get(IMAGE):
        given["images"] = [list(images)]
    if clips := media.get(AUDIO):
        rate = int(audio_extractor(processor).sampling_rate)
        given |= {"audio": list(clips), "audio_kwargs": {"sampling_rate": rate}}
    try:
        return processor(text=[text], add_special_tokens=False, return_tensors="pt", **given)
    except REFUSED as error:
        raise ValueError(f"the processor refuses it: {' '.join(str(error).split())}") from error


def tokens_of(processor: Any, text: str, media: Mapping[Kind, Sequence[Any]]) -> np.ndarray:
    """The tokens of a text, with those of its images and audio clips (int64).

    Raises:
        ValueError: the processor refuses an input.
    """
    return np.asarray(processed(processor, text, media)["input_ids"][0], np.int64).reshape(-1)


def item_tokens(processor: Any, kind: Kind, item: Any) -> np.ndarray:
    """The tokens that one image or audio clip stands for (int64).

    Raises:
        ValueError: the processor refuses the image or clip.
    """
    return tokens_of(processor, token_of(processor, kind), {kind: [item]})


def refuse_tokenless(processor: Any, kind: Kind, tokens: np.ndarray) -> None:
    """Refuse an image or audio clip that stands for no token, because the model would not read it.

    Raises:
        ValueError: none of ``tokens`` belongs to the image or clip.
    """
    if token_id(processor, kind) not in tokens:
        raise ValueError(f"one of its {kind.many} stands for no token: it is too short or too small")


def _filled(encoded: EncodedChat, places: np.ndarray, tokens: Sequence[np.ndarray]) -> tuple[EncodedChat, int]:
    """Replace the token at each of ``places`` by several tokens without labels.

    Returns:
        the conversation, and the number of tokens up to the end of the last ones that were put in.
    """
    sizes = np.ones(len(encoded.input_ids), np.int64)
    sizes[places] = [len(each) for each in tokens]
    begins = np.cumsum(sizes) - sizes
    ids, labels = np.repeat(encoded.input_ids, sizes), np.repeat(encoded.labels, sizes)
    for place, each in zip(places, tokens, strict=True):
        part = slice(begins[place], begins[place] + len(each))
        ids[part], labels[part] = each, IGNORE
    stops = tuple(int(begins[place]) for place in encoded.stops)
    return replace(encoded, input_ids=ids, labels=labels, stops=stops), int(begins[places[-1]] + sizes[places[-1]])
