"""Reads documents out of local files, one at a time, with messages that name the file, the place and the fix.

Files are decoded and parsed here rather than by a `datasets` builder: its errors name neither byte nor line, and
a reader that yields text serves the indexed way and the streaming way alike. Nothing here touches the network.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from ...errors import Problem, UserError

Format = Literal["txt", "jsonl", "json", "csv", "parquet", "arrow"]
SplitText = Literal["file", "line", "paragraph"]
CHUNK = 1 << 20
"""Bytes decoded at a time."""


def read_documents(
    path: str, format: Format, *, text_column: str, split_text: SplitText, encoding: str
) -> Iterator[str]:
    """The documents of one file.

    Raises:
        UserError: undecodable bytes, a malformed line, a missing column or one that is not text.
    """
    if format == "txt":
        yield from _split(_decoded(path, encoding), split_text)
    elif format in ("parquet", "arrow"):
        yield from _table_texts(path, format, text_column)
    else:
        rows = {"jsonl": _json_rows, "json": _json_rows, "csv": _csv_rows}[format](path, encoding)
        for place, row in rows:
            yield _text(row, text_column, place)


def column_problem(place: str, text_column: str, columns: Iterable[str]) -> Problem:
    """The text column is not there: name those that are, and the nearest."""
    names = [str(name) for name in columns]
    nearest = (difflib.get_close_matches(text_column, names, n=1, cutoff=0.5) or [None])[0]
    fix = f"set data.source.text_column={nearest}" if nearest else "set data.source.text_column to one of these"
    listed = ", ".join(names) or "none"
    return Problem("data.source.text_column", f"{place} has no such column; columns there: {listed}", fix, text_column)


def _text(row: Any, text_column: str, place: str) -> str:
    """The text of a row; a missing value (null) is an empty document."""
    if not isinstance(row, dict):
        raise UserError(
            Problem(
                "data.source.paths",
                f"{place} holds {type(row).__name__}, not an object with columns",
                f'write each document as {{"{text_column}": "..."}}',
            )
        )
    if text_column not in row:
        raise UserError(column_problem(place, text_column, row))
    return _encodable(_as_text(row[text_column], text_column, place))


def _encodable(text: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoding can hold: it becomes U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_text(value: Any, text_column: str, place: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            Problem(
                "data.source.text_column",
                f"in {place} the column holds {type(value).__name__}, not text",
                "name a column of strings",
                text_column,
            )
        )
    return value


def _decoded(path: str, encoding: str) -> Iterator[str]:
    """Text of the file in chunks; newlines stay as they are, a byte order mark is dropped."""
    decoder = codecs.getincrementaldecoder(encoding)()
    position, first = 0, True
    with open(path, "rb") as file:
        while True:
            chunk = file.read(CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UserError(_undecodable(path, encoding, position - pending + error.start, error)) from None
            position += len(chunk)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            if text:
                yield text
            if not chunk:
                return


def _undecodable(path: str, encoding: str, offset: int, error: UnicodeDecodeError) -> Problem:
    byte = error.object[error.start]
    return Problem(
        path,
        f"byte {offset} (0x{byte:02x}) is not valid {encoding}: {error.reason}",
        f"set data.source.encoding to the file's own, or convert it: iconv -f ENCODING -t {encoding}; "
        "a file that is not text does not belong into data.source.paths",
    )


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """Lines with their line ends; only ``\\n`` ends a line (a text may hold the rarer separators)."""
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


def _split(chunks: Iterable[str], split_text: SplitText) -> Iterator[str]:
    if split_text == "file":
        yield "".join(chunks)
    elif split_text == "line":
        yield from (line.rstrip("\r\n") for line in _lines(chunks) if line.strip())
    else:
        paragraph: list[str] = []
        for line in _lines(chunks):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph).rstrip("\r\n")
                paragraph = []
        if paragraph:
            yield "".join(paragraph).rstrip("\r\n")


def _json_rows(path: str, encoding: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of JSON lines, or of a file that is one JSON array."""
    name = Path(path).name
    lines = enumerate(_lines(_decoded(path, encoding)), start=1)
    for number, line in lines:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            whole = line + "".join(text for _, text in lines)
            rows = _parse_json(whole, path, number - 1)
            yield from ((f"{name}, element {index}", row) for index, row in enumerate(rows))
            return
        yield f"{name}, line {number}", _parse_json(line.rstrip(), path, number - 1)


def _parse_json(text: str, path: str, lines_before: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {lines_before + error.lineno}, column {error.colno}"
        raise UserError(
            Problem(
                path,
                f"{place} is not JSON: {error.msg}",
                "mend that line; a .jsonl file holds one object per line, a .json file one array or "
                "one object per line",
            )
        ) from None


def _csv_rows(path: str, encoding: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the default of 128 KiB
    reader = csv.DictReader(_lines(_decoded(path, encoding)), strict=True)
    try:
        for row in reader:
            row.pop(None, None)  # cells beyond the header
            yield f"{Path(path).name}, line {reader.line_num}", row
    except csv.Error as error:
        raise UserError(
            Problem(
                path,
                f"line {reader.line_num} is not CSV: {error}",
                "quote fields that hold commas, quotes or line ends",
            )
        ) from None


def _table_texts(path: str, format: Format, text_column: str) -> Iterator[str]:
    import pyarrow as pa

    try:
        for batch in _record_batches(path, format, text_column):
            yield from (_as_text(value, text_column, Path(path).name) for value in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the file system's word; Arrow's own has no number
            raise
        raise UserError(
            Problem(
                path,
                f"cannot be read as {format}: {error}",
                "check that the file is whole, and set data.source.format to what it is",
            )
        ) from None


def _record_batches(path: str, format: Format, text_column: str) -> Iterator[Any]:
    """Record batches with the text column only, without holding the whole file in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if format == "parquet":
        with pq.ParquetFile(path) as file:
            _check_column(path, text_column, file.schema_arrow.names)
            yield from file.iter_batches(batch_size=1024, columns=[text_column])
        return
    with pa.memory_map(path) as source:
        is_file = source.read(6) == b"ARROW1"  # else the stream layout, which `datasets` writes
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        _check_column(path, text_column, reader.schema.names)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from (batch.select([text_column]) for batch in batches)


def _check_column(path: str, text_column: str, columns: list[str]) -> None:
    if text_column not in columns:
        raise UserError(column_problem(Path(path).name, text_column, columns))
