"""Write docs/keys.md and docs/coming-from.md, which are generated from the code (``make pages``)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..configs.key_list import keys_page
from ..configs.names_of_other_tools import coming_from

PAGES: dict[str, Callable[[], str]] = {"keys.md": keys_page, "coming-from.md": coming_from}


def main(folder: str) -> None:
    """Write every page into a folder."""
    for name, page in PAGES.items():
        Path(folder, name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
