"""Let Hydra find configuration groups in further folders. The key ``hydra.searchpath`` is not used for this, so that
users can set it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin


class GroupFolders(SearchPathPlugin):
    """Plugin of Hydra that appends folders of groups after the recipe's folder."""

    folders: ClassVar[list[Path]] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.folders:
            search_path.append(provider="trireme", path=f"file://{folder.resolve()}")


@contextmanager
def added_folders(folders: Sequence[Path]) -> Iterator[None]:
    """Context in which Hydra finds groups in ``folders``; the first folder with a file wins."""
    Plugins.instance().register(GroupFolders)
    GroupFolders.folders = list(folders)
    try:
        yield
    finally:
        GroupFolders.folders = []
