"""A data source for data sets on the Hugging Face Hub, in a local folder of the same layout, or written by
``save_to_disk`` of ``datasets``. It may use the network, unlike trireme's other sources.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .content_stamp import content_stamp, hash_json, time_stamp
from .document_files import check_column, column_problem

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger("trireme.data")
SAVED = ("state.json", "dataset_dict.json")
"""Files of which ``save_to_disk`` of `datasets` writes one."""
LONGEST = 300
"""Characters of a message of the hub's client that are shown."""


@dataclass
class Hub:
    """A data set of the Hugging Face hub, a local folder in its layout, or one that `datasets` saved to disk."""

    path: str
    """Repository, such as ``roneneldan/TinyStories``, or a local folder of data files."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Split, a slice of one such as ``train[:10%]``, or several joined by ``+``."""
    text_column: str = "text"
    """Column that holds the document; tasks that learn from rows take ``data.columns`` instead."""
    revision: str | None = None
    """Commit, tag or branch; with a commit, prepared data is used without asking the hub."""

    def load(self, cache_dir: str) -> Dataset:
        """All documents. Downloads go to the cache of `datasets` (``HF_HOME``), which other projects share."""
        return self._text_only(self._load(streaming=False))

    def rows(self, cache_dir: str) -> Dataset:
        """All rows with all columns, for tasks that learn from rows."""
        return self._load(streaming=False)

    def stream(self) -> IterableDataset:
        return self._text_only(self._load(streaming=True))

    def look(self) -> None:
        """Refuse a path that can only be a local folder but does not exist; the hub is not asked."""
        folder = Path(os.path.expanduser(self.path))
        if os.path.isdir(folder):
            return
        if self.path.startswith((".", "/", "~")) or self.path.count("/") > 1:
            fix = "give an existing folder, or a name on the hub such as roneneldan/TinyStories"
            raise UserError(Problem("data.source.path", "there is no such folder", fix, self.path))

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of a local folder."""
        return self._fingerprint(content_stamp)

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        folder = Path(os.path.expanduser(self.path))
        content: Any
        if os.path.isdir(folder):
            files = (path for path in sorted(folder.rglob("*")) if path.is_file())
            content = [(path.relative_to(folder).as_posix(), *stamp(path)) for path in files]
        else:
            content = self._commit()
        return hash_json([self.path if stamp is time_stamp else "", self.name, self.split, self.text_column, content])

    def _commit(self) -> str:
        """The commit that the revision stands for; without a network, the newest commit in the local cache."""
        revision = self.revision
        if revision and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision):
            return revision
        if self._newest:
            return self._newest
        from huggingface_hub import snapshot_download

        try:
            cached = snapshot_download(self.path, repo_type="dataset", revision=revision, local_files_only=True)
            return Path(cached).name
        except Exception:  # nothing is cached there, but `datasets` may have the data set in its own cache
            return "unknown"

    @cached_property
    def _newest(self) -> str | None:
        """The newest commit; None if the hub does not answer. It is asked once, since each try may wait for seconds."""
        from huggingface_hub import HfApi
        from huggingface_hub.utils import HfHubHTTPError

        try:
            return HfApi().dataset_info(self.path, revision=self.revision, timeout=10).sha or "unknown"
        except HfHubHTTPError:  # the hub answers that there is no such data set or no access; loading reports it
            return "unknown"
        except Exception as error:  # the HTTP clients below raise errors of many types
            log.info("the hub does not answer for %s (%s): going by the local cache", self.path, type(error).__name__)
            return None

    def _load(self, streaming: bool) -> Any:
        from datasets import load_dataset

        folder = Path(os.path.expanduser(self.path))
        here = os.path.isdir(folder)
        answers = here or self._newest is not None
        try:
            with nullcontext() if answers else _offline():
                if here and any((folder / name).is_file() for name in SAVED):
                    return _saved(folder, self.split, streaming)
                return load_dataset(
                    str(folder) if here else self.path,
                    self.name,
                    split=self.split,
                    revision=self.revision,
                    streaming=streaming,
                )
        except Exception as error:  # not found, no network, no such split; each client raises errors of its own
            reason = " ".join(str(error).split())[:LONGEST] or type(error).__name__
            if not answers:
                hub = "HF_HUB_OFFLINE is set" if _is_offline() else "the hub does not answer"
                reason = f"there is no folder of this name, {hub}, nothing is cached ({reason})"
            raise UserError(
                Problem(
                    "data.source.path",
                    f"cannot be loaded: {reason}",
                    "check path, name, split and revision of data.source, the network, and HF_TOKEN "
                    "for a gated data set",
                    self.path,
                )
            ) from error

    def _text_only(self, data: Any) -> Any:
        """The text column only, renamed to ``text``. A stream with unknown columns is checked at its first row."""
        place = f"data set {self.path!r}"
        if data.features is not None:
            check_column(place, self.text_column, data.features.arrow_schema)
        elif data.column_names is not None and self.text_column not in data.column_names:
            raise UserError(column_problem(place, self.text_column, dict.fromkeys(data.column_names)))
        data = data.select_columns([self.text_column])
        return data if self.text_column == "text" else data.rename_column(self.text_column, "text")


def _saved(folder: Path, split: str, streaming: bool) -> Any:
    """The data that ``save_to_disk`` of `datasets` has written: one data set, or one for each split.

    Raises:
        ValueError: there is no such split.
    """
    from datasets import Dataset, ReadInstruction, concatenate_datasets, load_from_disk

    found: Any = load_from_disk(str(folder))
    parts = {"train": found, str(found.split or "train"): found} if isinstance(found, Dataset) else dict(found)
    ranges = ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in parts.items()})
    chosen = [parts[one.splitname].select(range(one.from_, one.to)) for one in ranges]
    data = concatenate_datasets(chosen)
    return data.to_iterable_dataset() if streaming else data


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@contextmanager
def _offline() -> Iterator[None]:
    """Context in which only caches are used; otherwise the libraries would retry each file five times, for half a
    minute each."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
