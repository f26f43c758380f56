"""Read the documents of local files one at a time, from plain text, JSON, CSV, Parquet or Arrow. Functions here
also read JSON files as rows. Errors name the file and the line, and say how to correct it.

Files are decoded and parsed here and not by `datasets`, whose errors name neither byte nor line. Prepared and streamed
corpora use the same reader. Nothing here uses the network.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...errors import Problem, UserError
from ...models.json_file import reason
from .file_formats import Format
from .file_text import decoded, kind_by_content, lines

SplitText = Literal["file", "line", "paragraph"]


@dataclass(frozen=True)
class ReadOptions:
    """Options of a recipe for reading its files."""

    text_column: str = "text"
    split_text: SplitText = "file"
    encoding: str = "utf-8"
    delimiter: str | None = None
    """Character between the cells of csv and tsv files; None takes a comma or a tab."""


def read_documents(path: str, format: Format, options: ReadOptions) -> Iterator[str]:
    """The documents of one file.

    Raises:
        UserError: bytes cannot be decoded, a line or row is malformed, or the text column is missing or not text.
    """
    if format == "txt":
        yield from _encodable(_split(decoded(path, options.encoding), options.split_text), path)
    elif format in ("parquet", "arrow"):
        yield from _table_texts(path, format, options.text_column)
    elif format in ("csv", "tsv"):
        delimiter = options.delimiter or ("\t" if format == "tsv" else ",")
        yield from _encodable(_csv_texts(path, options, delimiter), path)
    else:
        for place, row in json_rows(path, options.encoding):
            yield _text(row, options.text_column, place)


def column_problem(place: str, text_column: str, columns: Mapping[str, str | None]) -> Problem:
    """The problem of a missing text column, which lists the existing columns and suggests one.

    Args:
        columns: name -> kind of its values, None for text.
    """
    texts = [name for name, kind in columns.items() if kind is None]
    nearest = difflib.get_close_matches(text_column, texts, n=1, cutoff=0.5) or texts[: len(texts) == 1]
    fix = f"set data.source.text_column={nearest[0]}" if nearest else "set data.source.text_column to a column of text"
    if not texts:
        fix = "give each row a column of text" + (_CHATS if any(columns.values()) else "")
    shown = ", ".join(name if kind is None else f"{name} ({kind})" for name, kind in columns.items()) or "none"
    return Problem("data.source.text_column", f"{place} has no such column; columns there: {shown}", fix, text_column)


def not_text(place: str, text_column: str, kind: str) -> Problem:
    """The problem of a text column that holds other values than text."""
    return Problem(
        "data.source.text_column",
        f"in {place} the column holds {kind}, not text",
        "name a column of strings" + (_CHATS if "list" in kind else ""),
        text_column,
    )


_CHATS = "; conversations (lists of messages) are learnt with data=chat (docs/chat.md)"


def _text(row: Any, text_column: str, place: str) -> str:
    """The text of a row; a missing value (null) is an empty document."""
    if not isinstance(row, dict):
        raise UserError(
            Problem(
                "data.source.paths",
                f"{place} holds {kind_of(row)}, not an object with columns",
                f'write each document as {{"{text_column}": "..."}}',
            )
        )
    if text_column not in row:
        columns = {str(name): None if isinstance(value, str) else kind_of(value) for name, value in row.items()}
        inside = [key for key, value in row.items() if isinstance(value, list) and _holds(value, text_column)]
        problem = column_problem(place, text_column, columns)
        if inside:
            why = f"{place} is not a row but an object that contains the rows, as its list {inside[0]!r}"
            fix = f"write one row per line: jq -c '.{inside[0]}[]' FILE.json > FILE.jsonl"
            problem = Problem("data.source.paths", why, fix)
        raise UserError(problem)
    value = row[text_column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(not_text(place, text_column, kind_of(value)))
    if half := half_character(value):
        raise UserError(Problem("data.source.paths", f"{place} {half}", "correct that text, or leave the row out"))
    return value


def _holds(rows: list[Any], column: str) -> bool:
    """Whether values of a list are rows with the column."""
    return any(isinstance(row, dict) and column in row for row in rows[:10])


def kind_of(value: Any) -> str:
    """The kind of a JSON value in plain words."""
    if isinstance(value, list):
        inside = sorted({kind_of(item) for item in value[:10]})
        return f"a list of {' and '.join(inside)}" if inside else "an empty list"
    kinds = {dict: "an object", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else kinds.get(type(value), f"a {type(value).__name__}")


def half_character(text: str) -> str:
    """A clause on half of a surrogate pair in a text, which JSON and some codecs allow but UTF-8 cannot encode; empty
    if there is none."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return (
            f"holds half of a surrogate pair, \\u{ord(text[error.start]):x}, as character {error.start + 1} of the text"
        )
    return ""


def _encodable(texts: Iterable[str], path: str) -> Iterator[str]:
    """Pass the texts on, and refuse one that UTF-8 cannot encode."""
    for number, text in enumerate(texts, start=1):
        if half := half_character(text):
            raise UserError(
                Problem(path, f"document {number} {half}", "check data.source.encoding, or correct that text")
            )
        yield text


def _split(chunks: Iterable[str], split_text: SplitText) -> Iterator[str]:
    if split_text == "file":
        yield "".join(chunks)
    elif split_text == "line":
        yield from (line.rstrip("\r\n") for line in lines(chunks) if line.strip())
    else:
        paragraph: list[str] = []
        for line in lines(chunks):
            if line.strip():
                paragraph.append(line)
            elif paragraph:
                yield "".join(paragraph).rstrip("\r\n")
                paragraph = []
        if paragraph:
            yield "".join(paragraph).rstrip("\r\n")


def json_rows(path: str, encoding: str) -> Iterator[tuple[str, Any]]:
    """Pairs (place, row) of JSON lines, or of a file that is one JSON array or one object over several lines."""
    name, first = Path(path).name, True
    numbered = enumerate(lines(decoded(path, encoding)), start=1)
    for number, line in numbered:
        if not line.strip():
            continue
        if line.lstrip().startswith("["):
            whole = line + "".join(text for _, text in numbered)
            rows = _parse_json(whole, path, number - 1)
            yield from ((f"{name}, element {index}", row) for index, row in enumerate(rows))
            return
        if first and not _is_json(line):
            yield f"{name}, line {number}", _one_object(line, "".join(text for _, text in numbered), path, number - 1)
            return
        first = False
        yield f"{name}, line {number}", _parse_json(line.rstrip(), path, number - 1)


def _one_object(line: str, rest: str, path: str, lines_before: int) -> Any:
    """Parse a file that is one object over several lines; if it is none, report an error in its first line."""
    try:
        json.loads(line + rest)
    except (ValueError, RecursionError):
        return _parse_json(line.rstrip(), path, lines_before)
    return _parse_json(line + rest, path, lines_before)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
        return True
    except (ValueError, RecursionError):
        return False


def _parse_json(text: str, path: str, lines_before: int) -> Any:
    fix = "correct that line; a .jsonl file holds one object per line, a .json file one array or one object per line"
    try:
        return json.loads(text, object_pairs_hook=_with_keys_once)
    except json.JSONDecodeError as error:
        place, why = f"line {lines_before + error.lineno}, column {error.colno}", f"is not JSON: {reason(error)}"
    except _KeyTwice as error:
        place, why = (
            f"line {lines_before + 1}",
            f"has an object with two keys {str(error)!r}, of which one would be lost",
        )
        fix = "keep one of them"
    except (RecursionError, ValueError) as error:  # too deep; a number of more digits than Python converts
        place, why = f"line {lines_before + 1}", f"is not JSON: {str(error).split(';')[0]}"
        if isinstance(error, ValueError):
            why, fix = f"holds a number of more than {sys.get_int_max_str_digits()} digits", "write it as a text"
    raise UserError(Problem(path, f"{place} {why}", fix))


class _KeyTwice(ValueError):
    """A JSON object has the same key twice."""


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise _KeyTwice(next(name for name in names if names.count(name) > 1))
    return found


def _csv_texts(path: str, options: ReadOptions, delimiter: str) -> Iterator[str]:
    """The text column of a file whose first row names the columns; every row must have a cell for each of them."""
    csv.field_size_limit(2**31 - 1)  # a document may be longer than the default of 128 KiB
    reader = csv.reader(lines(decoded(path, options.encoding)), delimiter=delimiter, strict=True)
    name, header, column, before = Path(path).name, None, 0, 0
    try:
        for cells in reader:
            line, before = before + 1, reader.line_num  # a row may take several lines
            if not cells:
                continue
            if header is None:
                header = cells
                column = _text_column(header, f"{name}, line {line}", options, delimiter)
            elif len(cells) != len(header):
                raise UserError(_ragged(path, line, cells, header, delimiter))
            else:
                yield cells[column]
    except csv.Error as error:
        raise UserError(
            Problem(
                path,
                f"line {before + 1} is not CSV: {error}",
                'quote fields that hold delimiters, quotes or line ends, and write a quote inside twice: ""',
            )
        ) from None


def _text_column(header: list[str], place: str, options: ReadOptions, delimiter: str) -> int:
    wanted = options.text_column
    if header.count(wanted) == 1:
        return header.index(wanted)
    if wanted in header:
        fix = "give each column a name of its own"
        raise UserError(Problem("data.source.text_column", f"{place} names this column twice", fix, wanted))
    others = [other for other in ";\t|,^" if other != delimiter and any(other in cell for cell in header)]
    if others and len(header) == 1:
        why = f"{place} is not separated by {_shown(delimiter)}: it reads {header[0][:80]!r}"
        fix = f"set 'data.source.delimiter=\"{_shown(others[0])}\"'"
        raise UserError(Problem("data.source.delimiter", why, fix, options.delimiter))
    raise UserError(column_problem(place, wanted, dict.fromkeys(header)))


def _ragged(path: str, line: int, cells: list[str], header: list[str], delimiter: str) -> Problem:
    why = f"line {line} has {len(cells)} cell(s), but the header names {len(header)} column(s): {', '.join(header)}"
    fix = f'put cells that hold {_shown(delimiter)} into "quotes"' if len(cells) > len(header) else "complete the row"
    if len(header) == 1:
        fix += ", or, if each line is a document, set data.source.format=txt data.source.split_text=line"
    return Problem(path, why, fix)


def _shown(delimiter: str) -> str:
    return "\\t" if delimiter == "\t" else delimiter


def _table_texts(path: str, format: Format, text_column: str) -> Iterator[str]:
    import pyarrow as pa

    if (kind := kind_by_content(path)) in ("gzip", "zstd", "xz", "bzip2", "zip"):
        raise UserError(Problem(path, f"is compressed ({kind}) as a whole", "decompress it first"))
    try:
        for batch in _record_batches(path, format, text_column):
            yield from (value or "" for value in batch.column(0).to_pylist())
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # an error of the file system; Arrow's own have no number
            raise
        raise UserError(
            Problem(
                path,
                f"cannot be read as {format}: {error}",
                "check that the file is whole, and set data.source.format to what it is",
            )
        ) from None


def _record_batches(path: str, format: Format, text_column: str) -> Iterator[Any]:
    """Record batches of the text column, read without holding the whole file in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if format == "parquet":
        with pq.ParquetFile(path) as file:
            check_column(Path(path).name, text_column, file.schema_arrow)
            yield from file.iter_batches(batch_size=1024, columns=[text_column])
        return
    with pa.memory_map(path) as source:
        is_file = source.read(6) == b"ARROW1"  # otherwise the stream layout, which `datasets` writes
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        check_column(Path(path).name, text_column, reader.schema)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        yield from (batch.select([text_column]) for batch in batches)


def check_column(place: str, text_column: str, schema: Any) -> None:
    """Refuse an Arrow schema whose ``text_column`` is missing, named twice, or no column of strings."""
    if schema.names.count(text_column) > 1:
        fix = "give each column a name of its own"
        raise UserError(Problem("data.source.text_column", f"{place} names this column twice", fix, text_column))
    if text_column not in schema.names:
        raise UserError(column_problem(place, text_column, {field.name: not_string(field.type) for field in schema}))
    if found := not_string(schema.field(text_column).type):
        raise UserError(not_text(place, text_column, found))


def not_string(type: Any) -> str | None:
    """None for an Arrow type of strings (or of nulls only), else the name of the type."""
    import pyarrow.types as pt

    inside = type.value_type if pt.is_dictionary(type) else type
    is_text = pt.is_string(inside) or pt.is_large_string(inside) or pt.is_string_view(inside)
    return None if is_text or pt.is_null(inside) else str(type)
