"""Describe the media that messages of a conversation may hold (images and audio clips), and find them in a row.

The file imports neither torch nor transformers, because ``trireme check`` reads rows with it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ADDRESSES = ("http:", "https:", "data:")
"""Beginnings of a text that is an address, and not the path of a file."""


@dataclass(frozen=True)
class Kind:
    """A kind of media."""

    name: str
    """Type of a part of this kind in templates, and the key of the part under which its item is stored."""
    one: str
    """Name of one such item in error messages, as "audio clip"."""
    many: str
    """Name of several such items in error messages, as "audio clips"."""
    column: str
    """Column of a row with the items of the parts that hold none themselves, in the order of these parts."""
    types: tuple[str, ...]
    """Types that rows may give such a part of a message."""


IMAGE = Kind("image", "image", "images", "images", ("image", "image_url", "picture"))
AUDIO = Kind("audio", "audio clip", "audio clips", "audios", ("audio", "audio_url", "input_audio"))
KINDS = (IMAGE, AUDIO)


def kind_of(part: Any, kinds: Sequence[Kind] = KINDS) -> Kind | None:
    """The kind of media of a part of a message's content; None if the part is of none of ``kinds``."""
    if not isinstance(part, Mapping) or str(part.get("type")).startswith("video"):
        return None
    own = (kind for kind in kinds if part.get("type") in kind.types or (kind.name in part and "text" not in part))
    return next(own, None)


def named(kinds: Sequence[Kind], joint: str = "and", before: str = "") -> str:
    """The names of kinds of media for an error message, as "images and audio clips".

    Args:
        joint: word before the last name.
        before: a further name, which the list begins with.
    """
    every = [*([before] if before else []), *(kind.many for kind in kinds)]
    return f" {joint} ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def media_of(messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], kind: Kind) -> list[Any]:
    """The stored images or audio clips of a conversation in the order of its messages: paths, bytes, or opened items.

    Args:
        messages: the messages of the conversation.
        row: the row of the conversation. Its column ``kind.column`` holds the items that are not in the messages.

    Raises:
        ValueError: an item is missing, left over, an address, or a text in base64.
    """
    given = row.get(kind.column)
    given = [] if given is None else given
    left = list(given if isinstance(given, list | tuple) else [given])
    found = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if kind_of(part) is kind:
                stored = _stored(part, kind)
                found.append(left.pop(0) if stored is None and left else stored)
                if found[-1] is None:
                    many = f"{len(found)} {kind.many} in its messages"
                    raise ValueError(f"it has {many}, and the column {kind.column} fewer")
    if left:
        raise ValueError(f"the column {kind.column} holds {len(left)} {kind.many} more than its messages")
    return found


def _stored(part: Mapping[str, Any], kind: Kind) -> Any:
    """The item that a part stores: a path, bytes, samples with their rate, or an opened item; None without one."""
    keys = (kind.name, "path", "url", f"{kind.name}_url", "array", "bytes")
    stored = next((part[key] for key in keys if part.get(key) is not None and not _empty(part[key])), None)
    if isinstance(stored, Mapping) and "url" in stored:
        stored = stored["url"]
    if "base64" in part or "input_audio" in part:
        raise ValueError(f"one of its {kind.many} is a text in base64; store it as a file, and give its path")
    if isinstance(stored, str) and stored.startswith(ADDRESSES):
        raise ValueError(f"one of its {kind.many} is an address; store the {kind.one}, and give its path")
    if isinstance(stored, str):
        return stored.removeprefix("file://")
    if kind is AUDIO and (hasattr(stored, "__array__") or isinstance(stored, list)):
        return {"array": stored, "sampling_rate": part.get("sampling_rate")}
    return stored


def _empty(value: Any) -> bool:
    return isinstance(value, str | bytes | Mapping) and not value
