"""Prepare the rows of a data set: load, choose columns, drop repeated rows, split, and write.

The result is cached as Arrow files, including images and audio, so the source is read only once and all ranks on a
machine share the memory. Rows are split by a hash of their content, as documents are (``held_out.py``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from .cache import built_once, cache_root
from .chat.media_forms import FOLDER, names_file
from .content_stamp import hash_json
from .corpus_stats import Stats, digest
from .data_config import DataConfig
from .document_source import EVAL_SOURCE, SOURCE
from .held_out import first_of_each, split_documents
from .prepare import progress_bars
from .row_source import RowSource

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("trireme.data")
VERSION = 5
"""Version of the preparation, raised when it changes, so that older caches are not used."""


@dataclass
class PreparedRows:
    """Rows of a recipe, and their statistics."""

    train: Dataset
    held_out: Dataset
    stats: Stats
    print: str
    """Fingerprint of rows and split."""


def prepared_rows(
    config: DataConfig, wanted: Mapping[str, bool], key: str = SOURCE, columns: Mapping[str, str] | None = None
) -> PreparedRows:
    """Train and held-out rows, from the cache if they are there.

    Args:
        wanted: columns by the names that the task uses -> whether every row must have it.
        key: where the source stands in the recipe.
        columns: names of the source's columns; None takes ``config.columns``, which are those of ``eval_source`` too.

    Raises:
        UserError: bad input, no rows, or an empty split.
    """
    from datasets import load_from_disk

    root = cache_root(config.cache_dir)
    components = ((key, config.source), (EVAL_SOURCE, config.eval_source))
    opened = [RowSource(component, where) for where, component in components if component]
    own = dict(config.columns if columns is None else columns)
    for source in opened:
        source.check(streaming=False)
        for note in source.notes():
            log.info("%s", note)
    prints = [source.fingerprint() for source in opened]
    content = [VERSION, prints, dict(wanted), own, config.held_out, config.deduplicate]
    content += [config.columns] if own != config.columns else []
    content += [source.source.folders() for source in opened if source.gives_folders(wanted, own)]
    name = hash_json(content)[:24]
    folder = root / f"rows-{name}"
    with built_once(folder) as scratch:
        if scratch:
            with progress_bars():
                _prepare(config, opened, [own, config.columns], wanted, scratch)
    train, held_out = (load_from_disk(str(folder / split)) for split in ("train", "held_out"))
    stats = Stats(**json.loads((folder / "stats.json").read_text()))
    return PreparedRows(train, held_out, stats, name)  # type: ignore[arg-type]


def _prepare(
    config: DataConfig,
    sources: list[RowSource],
    columns: list[dict[str, str]],
    wanted: Mapping[str, bool],
    scratch: Path,
) -> None:
    start, temporary = time.perf_counter(), scratch / "temporary"
    temporary.mkdir()
    every = []
    for source, names in zip(sources, columns, strict=False):
        data = source.rows_of(str(temporary), wanted, names)
        if not len(data):
            raise UserError(Problem(source.key, "gives no rows", "point it at data", source.name))
        every.append(data)
    folders = list(dict.fromkeys(each for data in every if FOLDER in data.column_names for each in data.unique(FOLDER)))
    every = [(data, row_hashes(data, folders)) for data in every]
    kept = [first_of_each(hashes) if config.deduplicate else np.arange(len(data)) for data, hashes in every]
    (data, hashes), rows = every[0], kept[0]
    if len(every) > 1:
        held, held_hashes = every[1]
        repeated = np.isin(hashes[rows], held_hashes) & config.deduplicate
        rows, held_rows = rows[~repeated], kept[1]
    else:
        held, held_hashes = data, hashes
        rows, held_rows = (rows[part] for part in split_documents(hashes[rows], config.held_out))
    if not len(rows) or (not len(held_rows) and (config.held_out or len(every) > 1)):
        raise UserError(_one_sided(config, len(rows)))
    train, held_out = data.select(rows), held.select(held_rows)
    stats = Stats(
        documents=len(train) + len(held_out),
        duplicates_dropped=sum(len(one) for one, _ in every) - len(train) - len(held_out),
        train_documents=len(train),
        held_out_documents=len(held_out),
        unread_columns=[source.unread for source in sources if source.unread],
        incomplete_rows=[f"{source.key}: {source.left_out}" for source in sources if source.left_out],
        documents_digest=digest([hashes[rows], held_hashes[held_rows]]),
    )
    for name, part in (("train", train), ("held_out", held_out)):
        shards = None if len(part) else 1  # of no rows `datasets` would write no file, and then not read the folder
        without_decoding(part).save_to_disk(str(scratch / name), num_proc=None, num_shards=shards)
    shutil.rmtree(temporary)
    (scratch / "stats.json").write_text(json.dumps(asdict(stats), indent=1))
    log.info("prepared %d train and %d held-out rows in %.1f s", len(train), len(held_out), time.perf_counter() - start)


def without_decoding(data: Dataset) -> Dataset:
    """``data`` whose images and audio clips stay the bytes that they are stored as."""
    for name, feature in data.features.items():
        if (stored := _stored(feature)) != feature:
            data = data.cast_column(name, stored)
    return data


def _stored(feature: Any) -> Any:
    """A feature of ``datasets`` whose images and audio clips, also those in lists and objects, are not decoded."""
    from datasets import Audio, Image, LargeList, List

    if isinstance(feature, Audio | Image):
        return type(feature)(decode=False) if feature.decode else feature
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_stored(feature.feature))
    return {name: _stored(each) for name, each in feature.items()} if isinstance(feature, dict) else feature


def row_hashes(data: Dataset, folders: Sequence[str] = ()) -> np.ndarray:
    """A hash of the content of each row (uint64), equal for copies in another folder.

    Args:
        folders: folders in which relative paths of the rows begin. If there are several, equal paths in two of them
            are different files, so for rows with such paths the place of the folder in this list counts.
    """
    plain = without_decoding(data)
    places = {folder: place for place, folder in enumerate(folders)} if len(folders) > 1 else {}
    hashes = np.empty(len(plain), np.uint64)
    for place, row in enumerate(plain):
        state = hashlib.blake2b(digest_size=8)
        for name in sorted({*row} - {FOLDER}):  # type: ignore[arg-type]
            state.update(name.encode())
            _add(state, row[name])  # type: ignore[index]
        if places and names_file(row):  # type: ignore[arg-type]
            state.update(str(places[row[FOLDER]]).encode())  # type: ignore[index]
        hashes[place] = int.from_bytes(state.digest(), "little")
    return hashes


def _add(state: Any, value: Any) -> None:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:  # an image or an audio clip
        value = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
    state.update(value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode())


def _one_sided(config: DataConfig, train: int) -> Problem:
    side = "train" if train else "held-out"
    why = f"every row falls into the {side} split, so the other one is empty"
    return Problem(
        "data.held_out", why, "give more rows, name a data.eval_source, or set data.held_out=0", config.held_out
    )
