"""Read an image or audio clip as rows of published chats store it: a path, an address of a file, bytes, base64, or an
opened item; and find the file of a path.

The file imports neither torch nor transformers, because ``trireme check`` reads rows with it too.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from ....models.json_file import parse_json
from ..nested_cells import is_kept

FOLDER = "media_folder"
"""Column of a row with the folder that its relative paths begin in: the folder of the row's file."""
LONGEST_PATH = 1024
"""Characters of the longest text that is a path; a longer one is base64."""
KEYS = ("path", "url", "array", "bytes", "base64", "data", "source", "input_audio")
"""Keys under which parts of messages may store an item, beside the name of its kind."""


def item_of(stored: Any, name: str, folders: Sequence[str] = ()) -> Any:
    """An image or audio clip as readers of images and audio take it: the path of a file that exists, bytes, samples
    with their rate, or an opened item; None if nothing is stored.

    Args:
        stored: the item, or an object that holds it under one of ``KEYS``, ``name`` or ``name + '_url'``.
        name: name of its kind, such as image.
        folders: folders in which a relative path is looked for before the working folder.

    Raises:
        ValueError: it is an address on the net, a broken text in base64, or the path of no file.
    """
    if isinstance(stored, Mapping):
        return _of_object(stored, name, folders)
    if isinstance(stored, str):
        return _of_text(stored, name, folders) if stored else None
    if isinstance(stored, bytes):
        return stored or None
    if name == "audio" and (hasattr(stored, "__array__") or isinstance(stored, list)):
        return {"array": stored, "sampling_rate": None}
    return stored


def _of_object(stored: Mapping[str, Any], name: str, folders: Sequence[str]) -> Any:
    given = {key: stored[key] for key in (name, f"{name}_url", *KEYS) if not _empty(stored.get(key))}
    if "bytes" in given:  # `datasets` stores a name beside the bytes, of which there may be no file
        return item_of(given["bytes"], name, folders)
    if "array" in given:
        return {"array": given["array"], "sampling_rate": stored.get("sampling_rate")}
    for key, value in given.items():
        if key in ("base64", "data") and isinstance(value, str) and not value.startswith("data:"):
            return _decoded(value, name)
        found = item_of(value, name, folders)
        if isinstance(found, Mapping) and found.get("sampling_rate") is None:
            found = {**found, "sampling_rate": stored.get("sampling_rate")}
        if found is not None:
            return found
    return None


def _of_text(stored: str, name: str, folders: Sequence[str]) -> Any:
    scheme = urlsplit(stored[:LONGEST_PATH]).scheme if ":" in stored[:10] else ""
    if scheme == "data":
        head, _, text = stored.partition(",")
        return _decoded(text, name) if head.endswith(";base64") else unquote(text).encode()
    if scheme in ("http", "https"):
        raise ValueError(f"{stored[:80]!r} is an address on the net; store the {name} in a file, and give its path")
    if len(stored) > LONGEST_PATH:
        return _decoded(stored, name)
    return _file(url2pathname(urlsplit(stored).path) if scheme == "file" else stored, folders)


def _file(path: str, folders: Sequence[str]) -> str:
    """The file of a path.

    Raises:
        ValueError: there is none.
    """
    path = os.path.expanduser(path)
    places = [""] if os.path.isabs(path) else [*dict.fromkeys((*filter(None, folders), os.getcwd()))]
    found = next((file for place in places if os.path.isfile(file := os.path.join(place, path))), None)
    if found is not None:
        return found
    if Path(places[0], path).is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    where = f" in {' or '.join(places)}" if any(places) else ""
    raise ValueError(f"there is no file {path}{where}")


def names_file(row: Mapping[str, Any]) -> bool:
    """Whether a text in a row is the relative path of a file in the row's folder."""
    folder = row.get(FOLDER) or ""
    texts = (text for name, value in row.items() if name != FOLDER for text in _texts(value))
    paths = (text for text in texts if 0 < len(text) <= LONGEST_PATH and not os.path.isabs(text) and "\0" not in text)
    return bool(folder) and any(os.path.isfile(os.path.join(folder, path)) for path in paths)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value, also in lists and objects that are stored as JSON."""
    if isinstance(value, str) and is_kept(value):
        value = parse_json(value)
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _decoded(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"one {name} is text that is neither a path nor valid base64") from None


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | bytes | Mapping) and not value)
