"""Find the local data files that a recipe names, and determine the format of each.

The format follows from the suffix (``.jsonl.gz`` is JSON lines) or from ``data.source.format``. A file with an unknown
suffix is never read as text. It is refused if the recipe names it, and skipped and reported if it lies in a folder.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...errors import Problem, UserError

Format = Literal["txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".text": "txt",
    ".md": "txt",
    ".markdown": "txt",
    ".rst": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".jl": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes of compression; the suffix before them tells the format."""
ABOUT_THE_DATA = {"readme", "license", "licence", "changelog", "citation", "notice", "contributing", "authors"}
"""Names (without suffix, in lower case) of texts about a data set, which are no documents of it."""
OF_DATASETS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""Files that ``datasets`` writes beside the tables of a folder."""
MOST_NAMES = 5
"""Most files that are named in one line."""


@dataclass
class ChosenFiles:
    """The files that a recipe's paths stand for."""

    files: dict[str, Format] = field(default_factory=dict)
    """Absolute path and format, in the order of the paths, each file once."""
    notes: list[str] = field(default_factory=list)
    """Lines for the log: files that were taken from folders, and files that were skipped."""
    problems: list[Problem] = field(default_factory=list)


def choose_files(paths: list[str], format: Format | None) -> ChosenFiles:
    """Files of ``paths`` (files, folders, glob patterns); problems are collected, not raised.

    Args:
        format: format of all files; None goes by their suffixes.
    """
    chosen = ChosenFiles()
    if not paths:
        chosen.problems.append(Problem("data.source.paths", "no path is given", "name a file, folder or pattern", []))
    for path in paths:
        folder = Path(os.path.expanduser(path))
        if os.path.isdir(folder):
            _take_folder(chosen, path, folder, format)
            continue
        found = _expand(folder)
        if not found:
            chosen.problems.append(_nothing_there(path))
        for file in found:
            known = format_of(file) if format is None else format
            if known is None:
                chosen.problems.append(_unknown(file))
            else:
                chosen.files[str(file.absolute())] = known
    return chosen


def format_of(path: Path) -> Format | None:
    """Format by the suffix, without a suffix of compression; None if the suffix is unknown."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return SUFFIXES.get(Path(name).suffix)


def listed(names: Iterable[str]) -> str:
    """A list of names in one line, such as ``a, b, c, d, e and 7 more``."""
    names = list(names)
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more


def _take_folder(chosen: ChosenFiles, path: str, folder: Path, format: Format | None) -> None:
    """Choose all files under a folder whose suffix fits ``format``, without hidden ones."""
    files: dict[Path, Format | None] = {file: format_of(file) for file in _files_under(folder)}
    tables = format is None and any(known not in (None, "txt") for known in files.values())
    taken: dict[Path, Format] = {}
    for file, known in files.items():
        kind = known if format is None else _kept(known, format)
        if kind and not (_is_about_the_data(file) and (tables or kind != "txt")):
            taken[file] = kind
    passed_over = [file.relative_to(folder).as_posix() for file in files if file not in taken]
    kinds = set(taken.values())
    if "txt" in kinds and len(kinds) > 1:
        texts = listed(file.relative_to(folder).as_posix() for file, known in taken.items() if known == "txt")
        fix = f"name the files: data.source.paths=[{path}/*.jsonl], or set data.source.format to their format"
        chosen.problems.append(
            Problem("data.source.paths", f"holds tables and also text that may not belong to them ({texts})", fix, path)
        )
    elif not taken:
        why = f"no readable file there (skipped: {listed(passed_over)})" if files else "no file there"
        fix = "name files of a known suffix, or set data.source.format to their format"
        chosen.problems.append(Problem("data.source.paths", why, fix, path))
    chosen.files |= {str(file.absolute()): known for file, known in taken.items()}
    chosen.notes.append(
        f"{len(taken)} file(s) from {path}: {listed(file.relative_to(folder).as_posix() for file in taken)}"
    )
    if passed_over:
        chosen.notes.append(f"{len(passed_over)} file(s) in {path} skipped: {listed(passed_over)}")


def _kept(known: Format | None, format: Format) -> Format | None:
    """``format``, or None for a file whose suffix means another format."""
    alike = (known == "json" and format == "jsonl") or (known == "jsonl" and format == "json")
    return format if known is None or known == format or alike else None


def _is_about_the_data(file: Path) -> bool:
    return file.name.split(".")[0].lower() in ABOUT_THE_DATA or file.name in OF_DATASETS


def _expand(pattern: Path) -> list[Path]:
    """Files that a path or pattern stands for, sorted."""
    if os.path.isfile(pattern):
        return [pattern]
    return sorted(Path(name) for name in glob.glob(str(pattern), recursive=True) if os.path.isfile(name))


def _files_under(folder: Path) -> list[Path]:
    visible = (
        file for file in folder.rglob("*") if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    return sorted(file for file in visible if file.is_file())


def _nothing_there(path: str) -> Problem:
    fix = "give an existing file, folder or pattern (relative to the folder the command runs in)"
    return Problem("data.source.paths", "no file there", fix, path)


def _unknown(file: Path) -> Problem:
    if file.suffix.lower() in (".zip", ".tar", ".tgz", ".7z", ".rar"):
        return Problem("data.source.paths", "is an archive", "unpack it, and name the files in it", str(file))
    suffix = f"the suffix {file.suffix}" if file.suffix else "a name without suffix"
    return Problem(
        "data.source.paths",
        f"has {suffix}, which does not tell what the file holds",
        "set data.source.format: txt for text (split_text says what a document is), or jsonl, json, csv, tsv, "
        "parquet, arrow",
        str(file),
    )


def refuse(chosen: ChosenFiles) -> None:
    """Raises:
    UserError: a path stands for no file, or for one that cannot be read.
    """
    if chosen.problems:
        raise UserError(*chosen.problems)
