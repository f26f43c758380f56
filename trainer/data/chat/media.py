"""Describe the media that messages of a conversation may hold (images and audio clips), and find them in a row.

The file imports neither torch nor transformers, because ``trireme check`` reads rows with it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....models.json_file import parse_json
from ..nested_cells import is_kept
from .media_forms import FOLDER, KEYS, item_of


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

    @property
    def sign(self) -> str:
        """Text in a message that stands for an item of the column, as in data of LLaVA."""
        return f"<{self.name}>"

    def counted(self, number: int) -> str:
        """A number of items for an error message, as "1 audio clip"."""
        return f"{number} {self.one if number == 1 else self.many}"


IMAGE = Kind("image", "image", "images", "images", ("image", "image_url", "input_image", "picture"))
AUDIO = Kind("audio", "audio clip", "audio clips", "audios", ("audio", "audio_url", "input_audio"))
KINDS = (IMAGE, AUDIO)


def kind_of(part: Any, kinds: Sequence[Kind] = KINDS) -> Kind | None:
    """The kind of media of a part of a message's content; None if the part is of none of ``kinds``."""
    if not isinstance(part, Mapping):
        return None
    given = str(part.get("type")).lower()
    if given.startswith("video"):
        return None
    own = (kind for kind in kinds if given in kind.types or (kind.name in part and "text" not in part))
    return next(own, None)


def named(kinds: Sequence[Kind], joint: str = "and", before: str = "") -> str:
    """The names of kinds of media for an error message, as "images and audio clips".

    Args:
        joint: word before the last name.
        before: a further name, which the list begins with.
    """
    every = [*([before] if before else []), *(kind.many for kind in kinds)]
    return f" {joint} ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def media_of(
    messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], kind: Kind, folder: str | None = None
) -> list[Any]:
    """The images or audio clips of a conversation in the order of its messages: paths of files that exist, bytes,
    samples with their rate, or opened items.

    Args:
        messages: the messages of the conversation.
        row: the row of the conversation. Its column ``kind.column`` holds the items that are not in the messages.
        folder: folder of relative paths; None takes the one in the row, that of the row's file.

    Raises:
        ValueError: an item is missing, left over, an address on the net, or the path of no file.
    """
    folders = [folder or row.get(FOLDER) or ""]
    found, left, bare = [], items_of_column(row, kind), 0
    given = len(left)
    for number, message in enumerate(messages, 1):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if kind_of(part) is not kind:
                continue
            stored = item_of(part, kind.name, folders)
            if stored is None:
                _refuse_other_keys(part, kind, number)
                stored, bare = item_of(left.pop(0), kind.name, folders) if left else None, bare + 1
            found.append(stored)
    if left or None in found:
        places = f"its messages have {bare or 'no'} {'part' if bare == 1 else 'parts'} for {kind.many} without a file"
        raise ValueError(f"{places}, and the column {kind.column} holds {kind.counted(given) if given else 'none'}")
    return found


def media_of_kinds(
    messages: Sequence[Mapping[str, Any]], row: Mapping[str, Any], kinds: Sequence[Kind], folder: str | None = None
) -> dict[Kind, list[Any]]:
    """The items of each of several kinds, as ``media_of`` gives them.

    Raises:
        ValueError: as in ``media_of``, or the row has no item of a kind.
    """
    found = {kind: media_of(messages, row, kind, folder) for kind in kinds}
    for kind, items in found.items():
        if not items:
            raise ValueError(f"it has no {kind.one}, and every row needs one")
    return found


def kinds_in(messages: Sequence[Mapping[str, Any]], kinds: Sequence[Kind]) -> list[Kind]:
    """Those of ``kinds`` of which messages have parts."""
    contents = [each["content"] for each in messages if isinstance(each.get("content"), list)]
    return [kind for kind in kinds if any(kind_of(part) is kind for each in contents for part in each)]


def items_of_column(row: Mapping[str, Any], kind: Kind) -> list[Any]:
    """What the column of a kind of media holds: none, one item, or several, perhaps as the JSON text of a list."""
    given = row.get(kind.column)
    if isinstance(given, str) and (is_kept(given) or (given.startswith("[") and given.rstrip().endswith("]"))):
        given = parse_json(given)
    if given is None or given == "":
        return []
    return [*given] if isinstance(given, list | tuple) else [given]


def with_parts(messages: Sequence[dict[str, Any]], row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Messages with a part for each item of the columns of media, if no message has a part of that kind.

    A text ``<image>`` or ``<audio>`` becomes the part, as in data of LLaVA, together with one line break beside it.
    Without any such text, the parts stand before the first message of the user, as TRL puts them.
    """
    found = [*messages]
    for kind in KINDS:
        items = items_of_column(row, kind)
        contents = [each.get("content") for each in found]
        lists = [each for each in contents if isinstance(each, list)]
        if not items or any(kind_of(part) is kind for each in lists for part in each):
            continue
        texts = [content for content in contents if isinstance(content, str)]
        texts += [part["text"] for each in lists for part in each if _is_text(part)]
        if any(kind.sign in text for text in texts):
            found = [_split(message, kind) for message in found]
        elif (first := next((n for n, each in enumerate(found) if each.get("role") == "user"), None)) is not None:
            content = contents[first]
            own = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
            found[first] = {**found[first], "content": [*({"type": kind.name} for _ in items), *own]}
    return found


def _split(message: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A message whose texts are divided where ``kind.sign`` stands, with a part of that kind in its place."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not any(_is_text(part) and kind.sign in part["text"] for part in parts):
        return message
    found: list[Any] = []
    for part in parts:
        pieces = part["text"].split(kind.sign) if _is_text(part) else [part]
        for number, piece in enumerate(pieces):
            found += [{"type": kind.name}] if number else []
            if not isinstance(piece, str):
                found.append(piece)
                continue
            piece = piece.removeprefix("\n") if number else piece
            piece = piece.removesuffix("\n") if number < len(pieces) - 1 else piece
            found += [{**part, "text": piece}] if piece else []
    return {**message, "content": found}


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _refuse_other_keys(part: Mapping[str, Any], kind: Kind, number: int) -> None:
    """Refuse a part that holds no item, but something under a key that is not read.

    Raises:
        ValueError: it is such a part.
    """
    read = ("type", "text", "sampling_rate", "detail", kind.name, f"{kind.name}_url", *KEYS)
    if unknown := [name for name, value in part.items() if name not in read and value is not None]:
        keys = ", ".join((kind.name, *KEYS[:-1]))
        raise ValueError(f"message {number} has an {kind.one} under {', '.join(unknown)}, which is none of {keys}")
