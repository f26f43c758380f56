"""Read the text of a local file, decompressed and decoded in chunks, with errors that name the undecodable byte.
Functions here also check a recipe's encoding and delimiter.

Compression is recognised by the file's first bytes and not by its name, because a download may have been decompressed
without being renamed.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
from collections.abc import Iterable, Iterator
from typing import IO, Any

from ...errors import Problem, UserError

CHUNK = 1 << 20
"""Bytes decoded at a time."""
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
}
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Byte order marks; the longer one first, as it begins with the shorter."""


def kind_by_content(path: str) -> str | None:
    """``gzip``, ``zstd``, ``xz``, ``bzip2``, ``zip``, ``parquet``, ``arrow``, or None for anything else."""
    with open(path, "rb") as file:
        head = file.read(10)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic) and (kind != "bzip2" or head[4:10] == b"1AY&SY"):
            return kind
    return None


def refuse_encoding(encoding: str) -> None:
    """Refuse the ``encoding`` of a source if Python has none of that name.

    Raises:
        ValueError: with the name, and what to write.
    """
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError):
        raise ValueError(
            f"encoding={encoding} is not an encoding that Python knows; write one such as utf-8, latin-1 or utf-16"
        ) from None


def one_delimiter(delimiter: str | None) -> str | None:
    """The character that separates the cells of a table; a tab may be given as ``\\t`` or ``tab``.

    Raises:
        ValueError: it is no single character.
    """
    delimiter = "\t" if delimiter in ("\\t", "tab") else delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"delimiter={delimiter!r} is not a single character; write one such as ; or | or \\t")
    return delimiter


def decoded(path: str, encoding: str) -> Iterator[str]:
    """Text of the file in chunks; newlines stay as they are, a byte order mark is dropped.

    Raises:
        UserError: the file is not text in this encoding, or its compressed data is damaged.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    position, first, head = 0, True, b""
    with _opened(path) as file:
        while True:
            chunk = file.read(CHUNK)
            head = head or chunk[:4]
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UserError(_undecodable(path, encoding, position - pending + error.start, head, error)) from None
            position += len(chunk)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if "\0" in text:
                raise UserError(_holds_nul(path, encoding))
            if text:
                yield text
            if not chunk:
                return


def lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines with their line ends; only ``\\n`` ends a line, since texts may hold rarer separators."""
    rest: list[str] = []
    for chunk in chunks:
        *whole, last = chunk.split("\n")
        for line in whole:
            rest.append(line)
            yield "".join(rest) + "\n"
            rest = []
        rest.append(last)
    if line := "".join(rest):
        yield line


@contextlib.contextmanager
def _opened(path: str) -> Iterator[IO[bytes] | Any]:
    """The file's bytes, decompressed."""
    kind = kind_by_content(path)
    if kind in ("zip", "parquet", "arrow"):
        fix = "unpack it, and name the files in it" if kind == "zip" else f"set data.source.format={kind}"
        raise UserError(Problem(path, f"is a {kind} file, not text", fix))
    readers: dict[str | None, Any] = {None: open, "gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zstd": _zstd}
    try:
        with readers[kind](path, "rb") as file:
            yield file
    except (EOFError, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the file system; those of decompression have none
            raise
        raise UserError(
            Problem(path, f"cannot be decompressed ({kind}): {error}", "get the file anew: it is damaged or cut short")
        ) from None


def _zstd(path: str, mode: str) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(path, mode), "zstd")


def _undecodable(path: str, encoding: str, offset: int, head: bytes, error: UnicodeDecodeError) -> Problem:
    byte = error.object[error.start]
    mark = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    likely = f"set data.source.encoding={mark}, whose mark the file begins with" if mark else ""
    return Problem(
        path,
        f"byte {offset} (0x{byte:02x}) is not valid {encoding}: {error.reason}",
        likely
        or f"set data.source.encoding to the file's own, or convert it: iconv -f ENCODING -t {encoding}; "
        "a file that is not text does not belong into data.source.paths",
    )


def _holds_nul(path: str, encoding: str) -> Problem:
    return Problem(
        path,
        f"holds NUL characters, read as {encoding}: it is binary, or text of another encoding",
        "set data.source.encoding to the file's own (utf-16-le is usual then), or remove them: tr -d '\\000'",
    )
